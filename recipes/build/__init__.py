"""The one builder: a complete Spec becomes a ``nemo_run.Partial`` of the function of NeMo that its task calls.

Each module here builds one argument of that function, or one part of the trainer. Every choice that a recipe makes is
made here; what is particular to a model or to a run is in the Spec.
"""

from __future__ import annotations

from pathlib import Path

import nemo_run as run
from nemo import lightning as nl

from slipway.configs import Spec
from slipway.planner.rules import require_trained
from slipway.recipes.build.data import data_module, tokenizer
from slipway.recipes.build.logging import logger, run_dir
from slipway.recipes.build.model import model_module, nemo_config_class
from slipway.recipes.build.optimizer import optimizer_module
from slipway.recipes.build.task import FUNCTIONS, adapter
from slipway.recipes.build.trainer import trainer
from slipway.recipes.reference import require_stand_ins
from slipway.recipes.runtime.checkpoint_files import base_checkpoint
from slipway.recipes.runtime.resume import Resume

__all__ = ["build", "nemo_config_class", "run_dir"]


def build(spec: Spec, *, cpu: bool = False) -> run.Partial:
    """The recipe of ``spec``.

    Args:
        spec: complete and legal; its parallel sizes are taken as they are.
        cpu: train on CPU ranks over Gloo with the reference kernels, instead of on GPUs with Transformer Engine.

    Raises:
        Refusal: the planner knows something of ``spec`` that the recipes cannot train.
    """
    require_trained(spec)
    if cpu:
        require_stand_ins()
    return run.Partial(
        FUNCTIONS[spec.task.call],
        model=model_module(spec, cpu=cpu, tokenizer=tokenizer(spec)),
        data=data_module(spec, cpu=cpu),
        trainer=trainer(spec, cpu=cpu),
        log=logger(spec),
        resume=_resume(spec),
        optim=optimizer_module(spec),
        **adapter(spec),
    )


def _resume(spec: Spec) -> run.Config:
    """Where training starts: the run's own checkpoint, else the weights of ``run.base``, else step 0."""
    resume = run.Config(Resume, resume_if_exists=spec.run.resume, resume_ignore_no_checkpoint=True)
    if spec.run.base:
        path = str(base_checkpoint(Path(spec.run.base)))
        resume.restore_config = run.Config(nl.RestoreConfig, path=path, load_optim_state=False, load_artifacts=False)
    return resume
