"""A recipe's parts as one Spec."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fiddle as fdl

from slipway.configs import Refusal, Run, Spec
from slipway.configs.convert import convert
from slipway.configs.load import record_of
from slipway.recipes.readback.data import read_data
from slipway.recipes.readback.layout import read_layout
from slipway.recipes.readback.levers import read_levers
from slipway.recipes.readback.model import read_model
from slipway.recipes.readback.optimizer import read_optimizer
from slipway.recipes.readback.parts import Parts, kind_of, value
from slipway.recipes.readback.precision import read_precision
from slipway.recipes.readback.task import read_task
from slipway.recipes.runtime.seed import Seed


def read_back(parts: Parts, base: Spec) -> Spec:
    """The Spec of which ``parts`` are what the builder builds.

    Args:
        base: what the recipe promises, for what its parts do not hold.

    Raises:
        Refusal: a value that no Spec may have.
    """
    layout, run = read_layout(parts, base), _read_run(parts, base.run)
    devices, nodes = value(parts.trainer, "devices"), value(parts.trainer, "num_nodes")
    if not isinstance(devices, int) or not isinstance(nodes, int):
        raise Refusal(
            f"trainer.devices={devices} and trainer.num_nodes={nodes} do not say how many ranks train",
            "Give both as whole numbers.",
        )
    gpus = devices * nodes
    cluster = base.cluster
    fits = devices == min(gpus, base.gpus_per_node) or (parts.cpu and nodes == 1)
    if not fits:
        cluster = replace(cluster, gpus_per_node=devices)
    found = replace(
        base,
        name=str(value(parts.log, "name", base.name)),
        gpus=gpus,
        model=read_model(parts, base, layout, gpus),
        precision=read_precision(parts, base.precision),
        layout=layout,
        levers=read_levers(parts, base, layout, gpus),
        optim=read_optimizer(parts, base, run.max_steps),
        data=read_data(parts, base),
        task=read_task(parts, base.task),
        cluster=cluster,
        run=run,
    )
    return convert(Spec, record_of(found), "")  # the types and limits of every value


# Field of the run -> argument of the checkpoint callback. A callback that is built does not keep them all.
_CHECKPOINTS = {
    "checkpoint_every_n_steps": "every_n_train_steps",
    "checkpoint_every_minutes": "every_minutes",
    "keep_checkpoints": "save_top_k",
}


def _read_run(parts: Parts, base: Run) -> Run:
    trainer = parts.trainer
    changed: dict[str, Any] = {name: value(trainer, name) for name in ("max_steps", "log_every_n_steps")}
    changed["val_check_interval"] = value(trainer, "val_check_interval") or 0
    if changed["val_check_interval"]:
        changed["limit_val_batches"] = value(trainer, "limit_val_batches")
    changed["seed"] = next((value(each, "seed") for each in parts.callbacks if _is_seed(each)), base.seed)
    if folder := value(parts.log, "log_dir"):
        changed["dir"] = str(Path(folder))
    if isinstance(parts.checkpoint, fdl.Buildable):
        changed |= {name: int(value(parts.checkpoint, theirs) or 0) for name, theirs in _CHECKPOINTS.items()}
    changed["async_save"] = bool(value(parts.strategy, "ckpt_async_save", value(parts.strategy, "async_save")))
    changed["resume"] = bool(value(parts.resume, "resume_if_exists", base.resume))
    path = value(value(parts.resume, "restore_config"), "path", "")
    kept = base.base and path and Path(path).is_relative_to(base.base)
    changed["base"] = base.base if kept else str(path)
    changed["extend_schedule"] = bool(value(parts.schedule, "extend", base.extend_schedule))
    return replace(base, **changed)


def _is_seed(callback: Any) -> bool:
    return kind_of(callback) is Seed
