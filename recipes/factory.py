"""What every factory shares: its parameters, and the way from them to a checked recipe.

NeMo-Run splits a factory's arguments on every comma, so all parameters are scalars.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from slipway import configs, planner
from slipway.configs import Refusal, Spec
from slipway.recipes.runtime.source import require_supported_pair

if TYPE_CHECKING:
    import nemo_run as run

# parameter -> (type, the Spec key it sets). The first four keep upstream's names.
PARAMETERS: dict[str, tuple[Any, str]] = {
    "dir": (Optional[str], "run.dir"),
    "name": (Optional[str], "name"),
    "num_nodes": (Optional[int], ""),
    "num_gpus_per_node": (Optional[int], ""),
    "gpu": (Optional[str], "gpu"),
    "precision": (Optional[str], "precision"),
    "tp": (Optional[int], "layout.tp"),
    "pp": (Optional[int], "layout.pp"),
    "vpp": (Optional[int], "layout.vpp"),
    "cp": (Optional[int], "layout.cp"),
    "ep": (Optional[int], "layout.ep"),
    "etp": (Optional[int], "layout.etp"),
    "mbs": (Optional[int], "layout.mbs"),
    "gbs": (Optional[int], "layout.gbs"),
    "seq_length": (Optional[int], "layout.seq_length"),
    "recompute": (Optional[str], "layout.recompute"),
    "fsdp": (Optional[str], "layout.fsdp"),
    "data": (Optional[str], ""),  # one .bin/.idx prefix; more of them by data.paths in a YAML overlay
    "tokenizer": (Optional[str], "data.tokenizer"),
    "seed": (Optional[int], "run.seed"),
    "max_steps": (Optional[int], "run.max_steps"),
    "checkpoint_every": (Optional[int], "run.checkpoint_every_n_steps"),
    "extend_schedule": (Optional[bool], "run.extend_schedule"),
}

FACTORIES: dict[str, Callable[..., Any]] = {}


def overrides(recipe: str, options: dict[str, Any]) -> list[str]:
    """Factory arguments as the ``key=value`` overrides that every command takes."""
    given = {k: v for k, v in options.items() if v is not None}
    out = [f"{PARAMETERS[k][1]}={v}" for k, v in given.items() if PARAMETERS[k][1]]
    if "num_nodes" in given or "num_gpus_per_node" in given:
        default = configs.load(recipe, [o for o in out if o.startswith("gpu=")]).spec
        per_node = given.get("num_gpus_per_node", min(default.gpu.gpus_per_node, default.gpus))
        out.append(f"gpus={int(given.get('num_nodes', 1)) * int(per_node)}")
    if "data" in given:
        out += ["data=indexed", f"data.paths=[{given['data']}]"]
    return out


def gpu_here() -> bool:
    import torch

    return torch.cuda.is_available()


def spec_of(recipe: str, options: dict[str, Any]) -> Spec:
    """The complete, legal spec that a factory call asks for.

    Raises:
        Refusal: whatever makes it illegal, with the nearest legal change.
    """
    spec = planner.complete(configs.load(recipe, overrides(recipe, options)))
    planner.require_legal(spec)
    return spec if _runs_here() else absolute(spec)


def absolute(spec: Spec) -> Spec:
    """``spec`` with every path from the root: a job does not start where it was submitted."""

    def full(path: str) -> str:
        return str(Path(path).expanduser().resolve())

    tokenizer = spec.data.tokenizer
    data = replace(
        spec.data,
        paths=[full(p) for p in spec.data.paths],
        tokenizer=full(tokenizer) if tokenizer and Path(tokenizer).exists() else tokenizer,
    )
    return replace(spec, run=replace(spec.run, dir=full(spec.run.dir)), data=data)


def check_data(spec: Spec) -> None:
    """Refuse data that is not there or not whole, and a vocabulary that does not fit the model."""
    from slipway.recipes.runtime.data_check import check_prefix, check_split, check_tokenizer

    for prefix in spec.data.paths:
        check_prefix(prefix)
        check_split(prefix, spec.data.split)
    if spec.data.tokenizer:
        check_tokenizer(spec.data.tokenizer, spec.model.vocab_size, spec.name)


def build(recipe: str, **options: Any) -> run.Partial:
    """The ``run.Partial`` of ``llm.pretrain`` for ``recipe``: on this machine's CPU if it is small enough to train
    there.
    """
    spec = spec_of(recipe, options)
    check_data(spec)
    cpu = trains_on_cpu(spec) and not gpu_here()
    from slipway.recipes import build as builder
    from slipway.recipes.runtime import record

    record.check_run_dir(builder.run_dir(spec), spec)
    return builder.build(spec, cpu=cpu)


CPU_PARAMETER_LIMIT = 50_000_000  # more than this takes minutes a step on a laptop


def trains_on_cpu(spec: Spec) -> bool:
    """Whether the recipe is a toy that a laptop can train."""
    return planner.parameters(spec).total <= CPU_PARAMETER_LIMIT


def factory(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a family's one-line factory its parameters, and remember it for registration and for ``slipway list``."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        options = dict(zip(PARAMETERS, args, strict=False)) | kwargs
        unknown = set(options) - set(PARAMETERS)
        if unknown:
            raise Refusal(
                f"{function.__name__} has no parameter {sorted(unknown)[0]!r}; "
                f"{configs.nearest(sorted(unknown)[0], PARAMETERS)}"
            )
        return function(**options)

    parameters = [
        inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=kind)
        for n, (kind, _) in PARAMETERS.items()
    ]
    returns = inspect.signature(function).return_annotation
    call.__signature__ = inspect.Signature(parameters, return_annotation=returns)  # type: ignore[attr-defined]
    FACTORIES[function.__name__] = call
    return call


def at_front_door(function: Callable[..., Any]) -> Callable[..., Any]:
    """A factory as the ``nemo`` command calls it: a refusal is one sentence and exit 2, and what cannot run here is
    refused now.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            require_supported_pair()
            options = dict(zip(PARAMETERS, args, strict=False)) | kwargs
            _refuse_what_needs_a_gpu(function.__name__, options)
            return function(*args, **kwargs)
        except Refusal as refusal:
            print(f"slipway: {refusal.sentence()}", file=sys.stderr)
            raise SystemExit(2) from None

    return call


def _runs_here() -> bool:
    """Whether the ``nemo`` command will train in this process, rather than submit, render or export."""
    elsewhere = ("run.executor", "executor=", "--dryrun", "--to-yaml", "--to-json", "--to-toml", "--help")
    return Path(sys.argv[0]).name in ("nemo", "nemorun") and not any(a.startswith(elsewhere) for a in sys.argv[1:])


def _refuse_what_needs_a_gpu(recipe: str, options: dict[str, Any]) -> None:
    if not _runs_here() or gpu_here():
        return
    spec = spec_of(recipe, options)
    if not trains_on_cpu(spec):
        raise Refusal(
            f"{recipe} needs {spec.gpus} {spec.gpu.name.upper()} GPUs and this machine has none, only "
            f"{os.cpu_count()} CPU cores",
            f"Rehearse it here with: slipway rehearse {recipe}; or send it to a cluster with: slipway "
            f"launch {recipe} cluster=YOURS.",
        )
