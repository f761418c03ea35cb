"""Where a run writes: its folder, its checkpoints, its loggers."""

from __future__ import annotations

from pathlib import Path

import nemo_run as run
from nemo import lightning as nl

from slipway.configs import Spec
from slipway.recipes.runtime.checkpoint import Checkpoint
from slipway.recipes.runtime.record import MLflow
from slipway.recipes.runtime.tensorboard import TensorBoard


def run_dir(spec: Spec) -> Path:
    """The folder of the run's logs, events, record and checkpoints."""
    return Path(spec.run.dir) / spec.name


def logger(spec: Spec) -> run.Config:
    """The configuration of :class:`nemo.lightning.NeMoLogger`, with the checkpoint callback."""
    folder = str(run_dir(spec))
    return run.Config(
        nl.NeMoLogger,
        name=spec.name,
        log_dir=spec.run.dir,
        version="",
        use_datetime_version=False,
        ckpt=_checkpoint(spec),
        update_logger_directory=False,
        wandb=_wandb(spec, folder),
        extra_loggers=_extra_loggers(spec),
        tensorboard=run.Config(TensorBoard, save_dir=f"{folder}/tensorboard", name="", version=""),
    )


def _checkpoint(spec: Spec) -> run.Config:
    return run.Config(
        Checkpoint,
        every_minutes=float(spec.run.checkpoint_every_minutes),
        save_last=True,
        monitor="step",
        mode="max",
        save_top_k=spec.run.keep_checkpoints,
        every_n_train_steps=spec.run.checkpoint_every_n_steps,
        filename="{step}",
        save_optim_on_train_end=True,
        always_save_context=False,
        save_context_on_train_end=False,
    )


def _wandb(spec: Spec, folder: str) -> run.Config | None:
    if not spec.run.wandb_project:
        return None
    from lightning.pytorch.loggers import WandbLogger

    return run.Config(WandbLogger, project=spec.run.wandb_project, name=spec.name, save_dir=folder)


def _extra_loggers(spec: Spec) -> list[run.Config]:
    if not spec.run.mlflow_experiment:
        return []
    return [
        run.Config(
            MLflow,
            experiment_name=spec.run.mlflow_experiment,
            run_name=spec.name,
            save_dir=f"{spec.run.dir}/mlruns",
        )
    ]
