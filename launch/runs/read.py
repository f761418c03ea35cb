"""Read what a run left behind: TensorBoard events, the stored recipe, checkpoints, the error log. No torch, no NeMo."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slipway.configs import Refusal
from slipway.configs.load import spec_from_record
from slipway.configs.schema import Spec
from slipway.recipes.runtime.run_files import FAILURE, RECORD

LOSS, LR, GRAD_NORM, STEP_TIME = "reduced_train_loss", "lr", "grad_norm", "train_step_timing in s"


@dataclass(frozen=True)
class Series:
    """One logged quantity: ``steps`` strictly rising, ``values`` beside them; a step trained twice keeps its last value."""

    steps: np.ndarray
    values: np.ndarray
    wall_time: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)


_EMPTY = Series(np.zeros(0, int), np.zeros(0), np.zeros(0))


@dataclass(frozen=True)
class Run:
    """One run as its folder tells it."""

    path: Path
    spec: Spec | None
    world_size: int
    on_gpu: bool
    device_name: str = ""  # as the driver calls the GPU; empty on a CPU
    series: dict[str, Series] = field(default_factory=dict)
    checkpoints: tuple[str, ...] = ()
    checkpoint_bytes: int = 0  # of the newest
    state: str = "finished"  # finished, running, failed, stopped early
    failure: str = ""  # of the rank that failed first
    started_at: tuple[int, ...] = ()  # the first step that each start logged
    repeated_steps: int = 0  # trained again after a restart, because no checkpoint held them

    def get(self, name: str) -> Series:
        return self.series.get(name, _EMPTY)

    def of_last_start(self, name: str, skip: int = 0) -> Series:
        """A quantity since the run was last started, which is what the record describes, without ``skip`` steps if there are more."""
        series = self.get(name)
        began = np.searchsorted(series.steps, self.started_at[-1] if self.started_at else 0)
        cut = slice(began + skip if len(series) > began + skip else began, None)
        return Series(series.steps[cut], series.values[cut], series.wall_time[cut])

    @property
    def name(self) -> str:
        return self.path.name


def is_run(path: Path) -> bool:
    return (path / RECORD).is_file() or (path / FAILURE).is_file() or (path / "tensorboard").is_dir()


def find_runs(path: Path) -> list[Path]:
    """The run folders at or below ``path``."""
    if is_run(path):
        return [path]
    return sorted({p.parents[1] for name in (RECORD, FAILURE) for p in path.rglob(name)})


def read_run(path: Path) -> Run:
    """Read one run, finished, going on or crashed.

    Raises:
        Refusal: the folder holds no run.
    """
    if not path.is_dir() or not is_run(path):
        raise Refusal(f"{path} holds no run", "Give the folder that holds slipway/recipe.json.")
    spec, world, device, device_name = None, 1, "", ""
    record = path / RECORD
    if record.is_file():
        try:
            held = json.loads(record.read_text())
            spec = spec_from_record(held["spec"])
            world, device, device_name = (
                int(held.get("world_size", 1)),
                held.get("device", ""),
                held.get("device_name", ""),
            )
        except (ValueError, KeyError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else error
            raise Refusal(
                f"{record} cannot be read: {what}", "Restore it, or remove it to report on the events alone."
            ) from None
    series, started_at, repeated = _read_events(path / "tensorboard")
    folder = path / "checkpoints"
    checkpoints = (
        tuple(sorted((p.name for p in folder.iterdir() if p.is_dir()), key=_step_of)) if folder.is_dir() else ()
    )
    failure = _failure(path / FAILURE)
    return Run(
        path,
        spec,
        world,
        "cuda" in device,
        device_name,
        series,
        checkpoints,
        sum(f.stat().st_size for f in (folder / checkpoints[-1]).rglob("*") if f.is_file()) if checkpoints else 0,
        "failed" if failure else _state(path, spec, series),
        failure,
        started_at,
        repeated,
    )


def _failure(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        held = json.loads(path.read_text())
        return f"in step {held['step']}, on rank {held['rank']}: {held['error']}: {held['message']}"
    except (ValueError, KeyError):
        return f"{path} cannot be read"


def _step_of(name: str) -> tuple[int, str]:
    digits = "".join(c for c in name.split("-")[0] if c.isdigit())
    return (int(digits) if digits else -1, name)


def _state(path: Path, spec: Spec | None, series: dict[str, Series]) -> str:
    loss = series.get(LOSS, _EMPTY)
    if spec is None or not len(loss):
        return "stopped early"
    if int(loss.steps[-1]) + 1 >= spec.run.max_steps:
        return "finished"
    newest = max((p.stat().st_mtime for p in (path / "tensorboard").glob("events*")), default=0.0)
    typical = float(np.median(np.diff(loss.wall_time))) if len(loss) > 2 else 60.0
    return "running" if time.time() - newest < max(10 * typical, 60.0) else "stopped early"


def _read_events(folder: Path) -> tuple[dict[str, Series], tuple[int, ...], int]:
    """Every logged quantity; where each start began; how many steps were trained a second time."""
    if not folder.is_dir():
        return {}, (), 0
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    merged: dict[str, dict[int, tuple[float, float]]] = {}
    started_at: list[int] = []
    repeated = 0
    for file in sorted(folder.glob("events.out.tfevents.*"), key=lambda p: p.stat().st_mtime):
        events: Any = EventAccumulator(str(file), size_guidance={SCALARS: 0})
        events.Reload()
        tags = events.Tags()["scalars"]
        for tag in tags:
            rows = merged.setdefault(tag, {})
            scalars = events.Scalars(tag)
            if (
                scalars
            ):  # a resumed run trains again from its checkpoint: what the old one logged beyond is not this run
                first = scalars[0].step
                beyond = [s for s in rows if s >= first]
                for step in beyond:
                    del rows[step]
                if tag == LOSS:
                    started_at.append(first)
                    repeated += len(beyond)
            for e in scalars:
                rows[e.step] = (e.value, e.wall_time)
    out: dict[str, Series] = {}
    for tag, rows in merged.items():
        steps = sorted(rows)
        out[tag] = Series(
            np.asarray(steps), np.asarray([rows[s][0] for s in steps]), np.asarray([rows[s][1] for s in steps])
        )
    return out, tuple(started_at), repeated
