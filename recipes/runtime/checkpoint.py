"""Checkpoints every N steps, every M minutes, and once more when the job is about to be ended. Lightning's own takes
one of the first two.
"""

# Without postponed annotations: NeMo-Run's command line reads the types of the constructors' arguments.
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from nemo import lightning as nl
from nemo.utils.callbacks.dist_ckpt_io import AsyncFinalizableCheckpointIO

from slipway.configs import Refusal
from slipway.recipes.runtime.run_files import SAVE_TIME, STOP_AT, STOPPED_EARLY

_MINUTES_PASSED, _STOP = 1, 2


def _require_folder(folder: Path, inode: int) -> int:
    """Require that ``folder`` can be written; returns its inode, which was ``inode`` at the last save.

    Raises:
        Refusal: it cannot, or a writer that was busy has made the folder again after it was removed.
    """
    if inode and not (folder.is_dir() and folder.stat().st_ino == inode):
        raise Refusal(
            f"{folder} was removed while the run trained",
            "Restore it if you can; the same command then resumes from its newest whole checkpoint.",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder.stat().st_ino
    except OSError as error:
        raise Refusal(
            f"{folder} cannot be written any more: {error.strerror}",
            "Make it writable; the same command then resumes from the last checkpoint.",
        ) from None


class Checkpoint(nl.ModelCheckpoint):
    """:class:`nemo.lightning.ModelCheckpoint` that also saves by the clock, and saves and stops on request.

    It is told by SIGTERM (preemption, scancel) or by the environment's :data:`STOP_AT`, the Unix time that the launcher
    sets some minutes before the job's time limit. After an early stop the process ends with :data:`STOPPED_EARLY`, so
    that
    the job's script puts it back in the queue: NeMo's own PreemptionCallback ends with 0, as if training were done.

    Args:
        every_minutes: 0 saves by steps only.
    """

    def __init__(self, every_minutes: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.every_minutes = every_minutes
        self._last_save = time.monotonic()
        self._stop_at = float(os.environ.get(STOP_AT) or "inf")
        self._told_to_stop = False
        self._folder = 0  # its inode

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: Any) -> None:
        self._told_to_stop = True

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        before = self._last_global_step_saved
        start = time.monotonic()
        super().on_train_batch_end(trainer, *args, **kwargs)
        wish = self._wish(trainer)
        if wish and self._last_global_step_saved == before:
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
        if self._last_global_step_saved != before:
            self._last_save = time.monotonic()
            if trainer.logger is not None:
                trainer.logger.log_metrics({SAVE_TIME: self._last_save - start}, step=trainer.global_step - 1)
        if wish == _STOP and trainer.global_step < trainer.max_steps:
            self._stop(trainer)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """Save, unless the folder went away or became read-only: training that cannot be saved is not continued.

        Raises:
            Refusal: on the first rank, which the others follow.
        """
        if trainer.is_global_zero:
            self._folder = _require_folder(Path(filepath).parent, self._folder)
        super()._save_checkpoint(trainer, filepath)

    def _save_last_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, Any]) -> None:
        """Upstream writes the checkpoint of a step that it has just saved a second time, as ``-last``."""
        if self._last_global_step_saved != trainer.global_step:
            super()._save_last_checkpoint(trainer, monitor_candidates)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Upstream bypasses :meth:`_save_last_checkpoint` here."""
        asked = self.__dict__["save_last"]
        self.save_last = asked and self._last_global_step_saved != trainer.global_step
        super().on_train_end(trainer, pl_module)
        self.save_last = asked

    def _wish(self, trainer: pl.Trainer) -> int:
        """What any rank asks for: signals and clocks do not reach all ranks within one step."""
        wish = 0
        if self.every_minutes and time.monotonic() - self._last_save >= 60.0 * self.every_minutes:
            wish = _MINUTES_PASSED
        if self._told_to_stop or time.time() >= self._stop_at:
            wish = _STOP
        if not torch.distributed.is_initialized():
            return wish
        most = torch.tensor(wish, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
        return int(most.item())

    def _stop(self, trainer: pl.Trainer) -> None:
        writer = trainer.strategy.checkpoint_io
        if isinstance(writer, AsyncFinalizableCheckpointIO):
            writer.maybe_finalize_save_checkpoint(blocking=True)
        if trainer.is_global_zero:
            why = "SIGTERM" if self._told_to_stop else "its time is nearly up"
            print(
                f"slipway: stopped after step {trainer.global_step} of {trainer.max_steps} ({why}); "
                "the checkpoint is saved, and the same "
                "command resumes from it.",
                file=sys.stderr,
                flush=True,
            )
        raise SystemExit(STOPPED_EARLY)
