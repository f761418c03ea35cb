"""The quantities that a run logged: its TensorBoard event files as arrays, each step once."""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

VALIDATION = "val_loss"  # NeMo's own tags
LOSS, LR, GRAD_NORM, STEP_TIME = "reduced_train_loss", "lr", "grad_norm", "train_step_timing in s"


FILES = "events.out.tfevents.*"
TAIL_RECORDS = 4000  # of an event file: the last hundreds of steps of ten quantities
_HEAD = struct.Struct("<Q")  # the length of a record's data
_CHECKSUM_BYTES = 4  # after the head, and after the data


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


def read_tail(folder: Path) -> Events:
    """The last events of a run's newest file that holds losses, however long the run is; empty if there is none.

    Each record of a file has its length in front (TensorFlow's TFRecord), so that only the last ones are parsed.
    """
    for file in sorted(folder.glob(FILES), key=lambda file: file.stat().st_mtime, reverse=True):
        rows_of: dict[str, _Rows] = {}
        for event in _last_events(file):
            for value in event.summary.value:
                rows_of.setdefault(value.tag, {})[event.step] = (value.simple_value, event.wall_time)
        series = {tag: _series(rows) for tag, rows in rows_of.items()}
        if LOSS in series:
            return Events(series, (int(series[LOSS].steps[0]),))
    return Events()


def _last_events(file: Path) -> Iterator[Any]:
    """The last :data:`TAIL_RECORDS` whole records of an event file, as TensorBoard's ``Event``."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    content = file.read_bytes()
    found: deque[tuple[int, int]] = deque(maxlen=TAIL_RECORDS)
    at, end = 0, len(content)
    while at + _HEAD.size <= end:
        start = at + _HEAD.size + _CHECKSUM_BYTES
        stop = start + _HEAD.unpack_from(content, at)[0]
        at = stop + _CHECKSUM_BYTES
        if at > end:
            break  # it is being written
        found.append((start, stop))
    for start, stop in found:
        try:
            yield Event.FromString(content[start:stop])
        except DecodeError:
            return  # a damaged record: TensorBoard reads no further either


def _logged(folder: Path) -> Iterator[tuple[str, list[Any]]]:
    """Every tag and its scalars, of each event file from the oldest to the newest."""
    files = sorted(folder.glob(FILES), key=lambda file: file.stat().st_mtime)
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
