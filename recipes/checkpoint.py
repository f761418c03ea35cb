"""Checkpoints every N steps and every M minutes, the seconds of each save logged. Lightning's own takes one of the two only."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from nemo import lightning as nl

from recipes.run_files import SAVE_TIME


class Checkpoint(nl.ModelCheckpoint):
    """:class:`nemo.lightning.ModelCheckpoint` that also saves when ``every_minutes`` have passed since the last save.

    Args:
        every_minutes: 0 saves by steps only. Rank 0's clock decides for all.
    """

    def __init__(self, every_minutes: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.every_minutes = every_minutes
        self._last_save = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        before = self._last_global_step_saved
        start = time.monotonic()
        super().on_train_batch_end(trainer, *args, **kwargs)
        if self._last_global_step_saved == before and self.every_minutes:
            due = time.monotonic() - self._last_save >= 60.0 * self.every_minutes
            if trainer.strategy.broadcast(due):
                candidates = self._monitor_candidates(trainer)
                self._save_topk_checkpoint(trainer, candidates)
                self._save_last_checkpoint(trainer, candidates)
        if self._last_global_step_saved != before:
            self._last_save = time.monotonic()
            if trainer.logger is not None:
                trainer.logger.log_metrics({SAVE_TIME: self._last_save - start}, step=trainer.global_step - 1)
