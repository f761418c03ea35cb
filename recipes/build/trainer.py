"""Lightning's trainer: devices, steps, validation, callbacks."""

from __future__ import annotations

import nemo_run as run
from nemo.utils.exp_manager import TimingCallback

from slipway.configs import Spec
from slipway.configs.load import record_of
from slipway.recipes.build.callbacks import gpu_callbacks
from slipway.recipes.build.logging import run_dir
from slipway.recipes.build.precision import precision_plugin
from slipway.recipes.build.strategy import strategy
from slipway.recipes.runtime.data_validation import NamedValidation
from slipway.recipes.runtime.record import DataClock, RunRecord
from slipway.recipes.runtime.schedule import ChangingLoss
from slipway.recipes.runtime.seed import Seed
from slipway.recipes.runtime.source import source
from slipway.recipes.runtime.trainer import Trainer


def trainer(spec: Spec, *, cpu: bool) -> run.Config:
    """The configuration of :class:`nemo.lightning.Trainer`."""
    settings = spec.run
    # CPU ranks are not bound to the GPUs of a node: outside SLURM all of them run on one machine.
    on_one_machine = cpu and spec.cluster.executor != "slurm"
    return run.Config(
        Trainer,
        accelerator="cpu" if cpu else "gpu",
        devices=spec.gpus if on_one_machine else min(spec.gpus, spec.gpus_per_node),
        num_nodes=1 if on_one_machine else spec.num_nodes,
        strategy=strategy(spec, cpu=cpu),
        plugins=precision_plugin(spec),
        callbacks=[
            run.Config(TimingCallback),
            run.Config(Seed, seed=settings.seed),
            run.Config(RunRecord, run_dir=str(run_dir(spec)), record=record_of(spec), source=source(), unjudged=[]),
            *_changing_loss(spec),
            *_named_validation(spec),
            *([] if cpu else gpu_callbacks(spec)),
        ],
        profiler=run.Config(DataClock),
        max_steps=settings.max_steps,
        val_check_interval=settings.val_check_interval or None,
        limit_val_batches=settings.limit_val_batches if settings.val_check_interval else 0,
        limit_test_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=settings.log_every_n_steps,
        accumulate_grad_batches=1,  # Megatron-Core accumulates micro-batches itself
        use_distributed_sampler=False,  # Megatron's sampler splits the data
        enable_progress_bar=True,
    )


def _named_validation(spec: Spec) -> list[run.Config]:
    sets = spec.data.validation_sets
    return [run.Config(NamedValidation, sets=dict(sets))] if sets else []


def _changing_loss(spec: Spec) -> list[run.Config]:
    return [run.Config(ChangingLoss, changes=list(spec.optim.changes))] if spec.optim.changes else []
