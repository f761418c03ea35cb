"""Read a run's folder: its record, its events, its checkpoints, its failure. No torch, no NeMo."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from slipway.configs import Refusal
from slipway.configs.convert import convert
from slipway.configs.load import recorded
from slipway.configs.schema import Spec
from slipway.configs.schema.legal import Size
from slipway.launch.diagnosis.classes import Kind
from slipway.launch.diagnosis.of_run import diagnose_run, sentence
from slipway.launch.runs.series import EMPTY, LOSS, Events, Series, read_events
from slipway.recipes.runtime.run_files import FAILURE, RECORD

EVENTS = "tensorboard"  # the folder of a run's event files
CHECKPOINTS = "checkpoints"
_UNFINISHED = "-unfinished"  # NeMo's marker next to a checkpoint that is being written
SILENT_STEPS = 10  # a run that has logged nothing for this many step times no longer runs,
SILENT_S = 60.0  # if that is at least this many seconds: NeMo writes its events in batches


@dataclass(frozen=True)
class Record:
    """What a run wrote about itself at its last start; ``spec`` is None if it wrote nothing."""

    spec: Spec | None = None
    world_size: int = 1
    device: str = ""  # as torch names it, for example cuda:0
    device_name: str = ""  # as the driver names the GPU; empty on a CPU


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What a record says of the ranks, checked as a Spec is."""

    world_size: Size = 1
    device: str = ""
    device_name: str = ""


@dataclass(frozen=True)
class Run:
    """One run, as its folder describes it."""

    path: Path
    record: Record = field(default_factory=Record)
    events: Events = field(default_factory=Events)
    checkpoints: tuple[str, ...] = ()
    checkpoint_bytes: int = 0  # of the newest
    state: str = "finished"  # finished, running, failed, stopped early
    failure: str = ""  # why, of the rank that failed first

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def spec(self) -> Spec | None:
        return self.record.spec

    @property
    def on_gpu(self) -> bool:
        return "cuda" in self.record.device

    def get(self, tag: str) -> Series:
        """A logged quantity; empty if it was not logged."""
        return self.events.series.get(tag, EMPTY)

    def of_last_start(self, tag: str, skip: int = 0) -> Series:
        """A quantity since the run was last started, which is what the record describes.

        The first ``skip`` steps are left out, unless there are no others.
        """
        series = self.get(tag)
        began = np.searchsorted(series.steps, self.events.started_at[-1] if self.events.started_at else 0)
        kept = slice(began + skip if len(series) > began + skip else began, None)
        return Series(series.steps[kept], series.values[kept], series.wall_time[kept])


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run, even of one that failed before its first step."""
    return (path / RECORD).is_file() or (path / FAILURE).is_file() or (path / EVENTS).is_dir()


def find_runs(path: Path) -> list[Path]:
    """The run folders at or below ``path``."""
    if is_run(path):
        return [path]
    return sorted({file.parents[1] for name in (RECORD, FAILURE) for file in path.rglob(name)})


def read_run(path: Path, events_of: Callable[[Path], Events] = read_events) -> Run:
    """Read one run, whether it is finished, running or failed.

    Args:
        events_of: reads the folder of event files: all of them, or :func:`.series.read_tail`.

    Raises:
        Refusal: the folder holds no run, or its record cannot be read.
    """
    if not path.is_dir() or not is_run(path):
        raise Refusal(f"{path} holds no run", "Give the folder that holds slipway/recipe.json.")
    record = _record(path / RECORD)
    events = events_of(path / EVENTS)
    checkpoints = _checkpoints(path / CHECKPOINTS)
    newest = _bytes_below(path / CHECKPOINTS / checkpoints[-1]) if checkpoints else 0
    state = _state(path, record.spec, events)
    failure = _failure(path, state)
    state = "failed" if failure else state
    return Run(path, record, events, checkpoints, newest, state, failure)


def _record(path: Path) -> Record:
    if not path.is_file():
        return Record()
    try:
        spec, stored = recorded(path)
        facts = {key: stored[key] for key in ("world_size", "device", "device_name") if key in stored}
        start = convert(_Start, facts, f"{path} cannot be read: ")
    except Refusal as refusal:
        raise Refusal(refusal.message, "Restore it, or remove it to report on the events alone.") from None
    return Record(spec, start.world_size, start.device, start.device_name)


def _checkpoints(folder: Path) -> tuple[str, ...]:
    """The names of the finished checkpoints in the order of their steps."""
    if not folder.is_dir():
        return ()
    found = {path.name for path in folder.iterdir()}
    finished = (name for name in found if (folder / name).is_dir() and name + _UNFINISHED not in found)
    return tuple(sorted(finished, key=_step_of))


def _step_of(name: str) -> tuple[int, str]:
    digits = "".join(c for c in name.split("-")[0] if c.isdigit())
    return (int(digits) if digits else -1, name)


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _failure(path: Path, state: str) -> str:
    """Why the run failed, in a sentence: the first cause in its logs and records; empty if it did not."""
    if state == "finished" or (state == "running" and not (path / FAILURE).is_file()):
        return ""
    found = diagnose_run(path)
    return "" if found.known is None or found.known.kind is Kind.ending else sentence(found)


def _state(path: Path, spec: Spec | None, events: Events) -> str:
    """The state of a run that did not fail: finished, running, or stopped early."""
    loss = events.series.get(LOSS, EMPTY)
    if spec is None or not len(loss):
        return "stopped early"
    if int(loss.steps[-1]) + 1 >= spec.run.max_steps:
        return "finished"
    newest = max((file.stat().st_mtime for file in (path / EVENTS).glob("events*")), default=0.0)
    step_s = float(np.median(np.diff(loss.wall_time))) if len(loss) > 2 else SILENT_S
    silent_s = time.time() - newest
    return "running" if silent_s < max(SILENT_STEPS * step_s, SILENT_S) else "stopped early"
