"""The quantities that a run logged: its TensorBoard event files as arrays, each step once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

VALIDATION = "val_loss"  # NeMo's own tags
LOSS, LR, GRAD_NORM, STEP_TIME = "reduced_train_loss", "lr", "grad_norm", "train_step_timing in s"


@dataclass(frozen=True)
class Series:
    """One logged quantity. ``steps`` is strictly increasing; a step that was trained twice has its last value.

    All three arrays have the same length; ``wall_time`` is in seconds since the Unix epoch.
    """

    steps: np.ndarray
    values: np.ndarray
    wall_time: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)


EMPTY = Series(np.zeros(0, int), np.zeros(0), np.zeros(0))


@dataclass(frozen=True)
class Events:
    """Every logged quantity of a run by its tag.

    ``started_at`` has the first step that each start logged; ``repeated_steps`` counts the steps that were trained
    again after a restart, because no checkpoint contained them.
    """

    series: dict[str, Series] = field(default_factory=dict)
    started_at: tuple[int, ...] = ()
    repeated_steps: int = 0


_Rows = dict[int, tuple[float, float]]  # step -> value, wall time


def read_events(folder: Path) -> Events:
    """The events of every start of a run, from the files in ``folder``; empty if there is no such folder."""
    rows_of: dict[str, _Rows] = {}
    started_at: list[int] = []
    repeated = 0
    for tag, scalars in _logged(folder):
        rows = rows_of.setdefault(tag, {})
        if scalars:
            forgotten = _forget(rows, scalars[0].step)
            if tag == LOSS:
                started_at.append(scalars[0].step)
                repeated += forgotten
        rows.update({event.step: (event.value, event.wall_time) for event in scalars})
    series = {tag: _series(rows) for tag, rows in rows_of.items()}
    return Events(series, tuple(started_at), repeated)


def _logged(folder: Path) -> Iterator[tuple[str, list[Any]]]:
    """Every tag and its scalars, of each event file from the oldest to the newest."""
    files = sorted(folder.glob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime)
    if not files:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow, where it is installed, warns on import
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    for file in files:
        events: Any = EventAccumulator(str(file), size_guidance={SCALARS: 0})  # 0: keep all
        events.Reload()
        for tag in events.Tags()["scalars"]:
            yield tag, events.Scalars(tag)


def _forget(rows: _Rows, first: int) -> int:
    """Remove the steps from ``first`` on, and return their number.

    A resumed run continues from its checkpoint: what the earlier start logged beyond it is not part of this run.
    """
    beyond = [step for step in rows if step >= first]
    for step in beyond:
        del rows[step]
    return len(beyond)


def _series(rows: _Rows) -> Series:
    steps = sorted(rows)
    values, times = ([rows[step][i] for step in steps] for i in (0, 1))
    return Series(np.asarray(steps), np.asarray(values), np.asarray(times))
