"""What a recipe calls: ``llm.pretrain`` or ``llm.finetune``, after what is about to train was judged once more on the
machine itself.
"""

# Without postponed annotations: NeMo-Run's command line reads the types of the arguments.
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import lightning.pytorch as pl
import nemo_run as run
from nemo.collections import llm
from nemo.lightning import AutoResume, NeMoLogger, OptimizerModule, Trainer
from nemo.lightning.pytorch.callbacks import PEFT

from slipway.configs.errors import exit_on_refusal
from slipway.recipes.runtime.numa import bind_to_own_gpu


def pretrain(
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    trainer: Trainer,
    log: Annotated[Optional[NeMoLogger], run.Config[NeMoLogger]] = None,
    resume: Annotated[Optional[AutoResume], run.Config[AutoResume]] = None,
    optim: Optional[OptimizerModule] = None,
) -> Path:
    """Pretrain, as :func:`nemo.collections.llm.pretrain` with the same arguments.

    Every rank judges first: before a process group, a folder or memory is made. An illegal run ends with one sentence
    and exit code 2, however it was started. Then it binds itself to the processors near its GPU.
    """
    with _prepared(model=model, data=data, trainer=trainer, log=log, resume=resume, optim=optim):
        return llm.pretrain(model=model, data=data, trainer=trainer, log=log, resume=resume, optim=optim)


def finetune(
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    trainer: Trainer,
    log: Annotated[Optional[NeMoLogger], run.Config[NeMoLogger]] = None,
    resume: Annotated[Optional[AutoResume], run.Config[AutoResume]] = None,
    optim: Optional[OptimizerModule] = None,
    peft: Optional[PEFT] = None,
) -> Path:
    """Finetune, as :func:`nemo.collections.llm.finetune` with the same arguments; judged as :func:`pretrain`."""
    with _prepared(model=model, data=data, trainer=trainer, log=log, resume=resume, optim=optim, peft=peft):
        return llm.finetune(model=model, data=data, trainer=trainer, log=log, resume=resume, optim=optim, peft=peft)


@contextlib.contextmanager
def _prepared(**parts: Any) -> Iterator[None]:
    from slipway.recipes.readback import judge_run
    from slipway.recipes.runtime import integrity
    from slipway.recipes.runtime.lifeline import tied

    with contextlib.ExitStack() as stack:
        with exit_on_refusal():
            spec = judge_run(**parts)
            if spec:
                stack.enter_context(tied(spec, Path(spec.run.dir) / spec.name, parts["trainer"]))
        if spec and spec.levers.numa_binding:
            bind_to_own_gpu()
        integrity.install()
        if spec and spec.run.verify_checkpoint:
            integrity.check_before_load(parts["trainer"])
        yield
