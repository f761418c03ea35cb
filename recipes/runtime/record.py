"""What a run keeps about itself: ``slipway/recipe.json`` next to its logs."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.profilers import Profiler

from slipway.configs import Refusal
from slipway.configs.errors import exit_on_refusal
from slipway.configs.load import spec_from_record
from slipway.recipes.runtime.data_fingerprint import check_same_data
from slipway.recipes.runtime.nan import NAN, after_nan, diverged
from slipway.recipes.runtime.run_dir import check_run_dir
from slipway.recipes.runtime.run_files import DATA_TIME, FAILURE, HANG, PEAK_MEMORY, RECORD
from slipway.recipes.runtime.source import require_supported_pair

FULL_BYTES = 32 << 20  # less than this left after a failed save: the disk was full


# Megatron-Core's words: its check of results, and its check of gradients.
_NAN = re.compile(r"[Uu]nexpected result (?:nan|inf)|found (?:NaN|Inf) in", re.IGNORECASE)


def _disk_is_full(error: BaseException | None, folder: Path) -> bool:
    """Whether ``error`` was caused by a full disk.

    Checkpoint writers are other processes: what comes back is text, and torch's writer only says that a position is not
    what it expected. The room that is left tells the rest.
    """
    while error is not None:
        text = str(error)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:
            return True
        if "inline_container" in text and shutil.disk_usage(folder).free < FULL_BYTES:
            return True
        error = error.__cause__ or error.__context__
    return False


_GONE = re.compile(r"No such file or directory|Read-only file system|Permission denied|Stale file handle")


def _without_folder(error: BaseException | None, folder: Path) -> Refusal | None:
    """The refusal of a save during which the folder of the checkpoints went away; None for other errors.

    Checkpoint writers are other processes: what comes back is text.
    """
    while error is not None:
        text = str(error)
        if not isinstance(error, Refusal) and str(folder) in text and (why := _GONE.search(text)):
            removed = "No such file" in why[0]
            return Refusal(
                f"{folder} {'was removed while the run trained' if removed else f'cannot be written: {why[0]}'}",
                "Restore it or make it writable; the same command then resumes from its newest whole checkpoint.",
            )
        error = error.__cause__ or error.__context__
    return None


class DataClock(Profiler):
    """How long training waited for its data: Lightning tells a profiler before and after it asks the loader for a
    batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waited_s = 0.0
        self._asked = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self._asked = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.waited_s += time.perf_counter() - self._asked

    def take(self) -> float:
        """Seconds waited since the last call."""
        waited, self.waited_s = self.waited_s, 0.0
        return waited


class MLflow(MLFlowLogger):
    """Lightning's, with whole steps: NeMo logs the step as a float, which MLflow's file store writes and then cannot
    read.
    """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, None if step is None else int(step))


class RunRecord(pl.Callback):
    """Writes the resolved recipe into the run's directory before the first step, and turns a refusal or a full disk
    into one sentence.

    Args:
        run_dir: the run's folder.
        record: the Spec of what trains.
        source: the code that trains.
        unjudged: settings of the recipe that no key of a Spec expresses.
    """

    def __init__(
        self, run_dir: str, record: dict[str, Any], source: dict[str, Any], unjudged: list[str] | None = None
    ) -> None:
        self.run_dir = Path(run_dir)
        self.record = record
        self.source = source
        self.unjudged = list(unjudged or [])
        self.data: dict[str, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        require_supported_pair()
        spec = spec_from_record(self.record)
        check_run_dir(self.run_dir, spec)
        if trainer.is_global_zero:
            self.data = check_same_data(self.run_dir, spec)
            if said := after_nan(self.run_dir):
                print(f"slipway: {said}", file=sys.stderr, flush=True)
            (self.run_dir / FAILURE).unlink(missing_ok=True)
            shutil.rmtree(self.run_dir / HANG, ignore_errors=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_rank:
            return
        path = self.run_dir / RECORD
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        device = pl_module.device
        held = {
            "spec": self.record,
            "world_size": trainer.world_size,
            "device": str(device),
            "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
            "source": self.source,
            "unjudged": self.unjudged,
            "data": self.data,
        }
        temporary.write_text(json.dumps(held, indent=1))
        temporary.replace(path)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        measured = {}
        if isinstance(trainer.profiler, DataClock):
            measured[DATA_TIME] = trainer.profiler.take()
        if pl_module.device.type == "cuda":
            peak = torch.tensor(torch.cuda.max_memory_allocated() / 2**30, device=pl_module.device)
            torch.distributed.all_reduce(peak, op=torch.distributed.ReduceOp.MAX)
            measured[PEAK_MEMORY] = float(peak)
        if trainer.logger is not None and measured:
            trainer.logger.log_metrics(measured, step=trainer.global_step - 1)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        exception = _without_folder(exception, self.run_dir / "checkpoints") or exception
        # A signal or an early stop is not a failure; before the ranks have met, another run may hold the folder.
        if isinstance(exception, Exception) and torch.distributed.is_initialized():
            self._keep_failure(trainer, exception)
        if isinstance(exception, Refusal):
            with exit_on_refusal():
                raise exception
        if _disk_is_full(exception, self.run_dir):
            print(
                f"slipway: {self.run_dir} is on a full disk: the checkpoint after step "
                f"{trainer.global_step} was not saved, earlier "
                "ones are kept. Make room and run the same command again: it resumes from the last good one.",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(2)

    def _keep_failure(self, trainer: pl.Trainer, error: Exception) -> None:
        """What ended the run, for its report. The first rank to fail is the one that says why; the others fail for
        want of it.
        """
        text = error.sentence() if isinstance(error, Refusal) else " ".join(str(error).split())
        name = type(error).__name__
        if _NAN.search(text):
            name, text = NAN, diverged(self.run_dir, trainer.global_step)
            print(f"slipway: {text}", file=sys.stderr, flush=True)
        failure = {"step": trainer.global_step, "rank": trainer.global_rank, "error": name, "message": text[:500]}
        path = self.run_dir / FAILURE
        with contextlib.suppress(OSError):  # the disk may be full
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x") as file:
                json.dump(failure, file)
