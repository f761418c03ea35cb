"""TensorBoard's log of a run, whose failure costs the log and not the run."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

_WRITES = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize")


class TensorBoard(TensorBoardLogger):
    """Lightning's, which says once that it cannot write, for example because its disk is full, and then is silent."""

    @functools.wraps(TensorBoardLogger.__init__)  # type: ignore[misc]  # NeMo-Run reads the arguments
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.lost = False
        for name in _WRITES:
            setattr(self, name, self._guarded(getattr(self, name)))

    def _guarded(self, write: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(write)
        def guarded(*args: Any, **options: Any) -> Any:
            if self.lost:
                return None
            try:
                return write(*args, **options)
            except (OSError, ValueError) as raised:  # Lightning wraps what a scalar raises in a ValueError
                error = raised.__cause__ if isinstance(raised, ValueError) else raised
                if not isinstance(error, OSError):
                    raise
                self.lost = True
                print(
                    f"slipway: {self.save_dir} cannot be written ({error.strerror or error}): training goes on without "
                    "its log until the next start",
                    file=sys.stderr,
                    flush=True,
                )
                return None

        return guarded
