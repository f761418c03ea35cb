"""One pass over a log, in memory that does not grow with it: the lines that a class knows, and the steps it reports.

A log is read in blocks. A line is looked at only if it holds one of :data:`GATES`; all lines that tell of a failure do.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from slipway.configs import Refusal
from slipway.launch.diagnosis.classes import FailureClass, classify
from slipway.launch.diagnosis.line import LONGEST, Line, parse_line, rank_of_file, time_in
from slipway.launch.diagnosis.progress import Step, first_step, last_step, step_in
from slipway.launch.diagnosis.torchelastic import Exit, exits_in, is_summary

BLOCK_BYTES = 4 << 20
AHEAD_BYTES = 32 << 10  # what is kept of a block until the next is read, so that no summary is cut
BEHIND_BYTES = 16 << 10  # how far before a line its time may stand
KEPT_PER_CLASS = 2048  # sightings of one class in one file: the first of each rank
SHAPES = 4096  # of lines that were looked at and belong to no class

GATES = (
    b"error",
    b"fail",
    b"kill",
    b"exception",
    b"watchdog",
    b"slipway:",
    b": nan",
    b"nccl warn",
    b"processgroupnccl",
    b"xid",
    b"cancelled",
    b"core dumped",
    b"root cause",
)
"""Words in lower case, of which one is in every line that tells of a failure."""

_COLLECTIVE = re.compile(r"(?:SeqNum=|at work: |work sequence id: |NCCL work: )(\d+)")
_ENQUEUED = re.compile(r"last enqueued (?:NCCL )?work: (\d+), last completed (?:NCCL )?work: (\d+)")
_OPERATION = re.compile(r"OpType=(\w+)")
_DIGITS = re.compile(rb"[\d.]+")
_NUMBERED = (b"Xid", b"exitcode", b"Error 8")  # lines whose class depends on a number


@dataclass(frozen=True)
class Sighting:
    """A line of a log that belongs to a class.

    Attributes:
        number: of the line in its file, from 1.
        offset: of the line in its file, in bytes.
        rank: global rank; None where the log does not say.
        step: the step that the line names, or the last that was reported before it.
        when: seconds since the epoch by the log's own clock, of the line or the nearest before it.
        warning: the program called it a warning.
        detail: what of the match has a name in the table: pid, job, missing, error.
    """

    known: FailureClass
    path: Path
    number: int
    offset: int
    text: str
    message: str
    rank: int | None = None
    local_rank: int | None = None
    host: str = ""
    step: int | None = None
    when: float | None = None
    warning: bool = False
    detail: dict[str, str] = field(default_factory=dict)


@dataclass
class Waiting:
    """What a rank's watchdog said of a collective that did not end: its number and kind, and what was enqueued."""

    sequence: int
    operation: str = ""
    enqueued: int = -1
    completed: int = -1


@dataclass
class Scan:
    """What one log says.

    Attributes:
        first, last: the first and the last step that it reports.
        counts: the lines of each class, those that were not kept included.
        waiting: by rank, what its watchdog gave up on.
        exits: how ranks ended, by the summaries of torchrun.
    """

    path: Path
    size: int = 0  # bytes that were read
    lines: int = 0
    sightings: list[Sighting] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    first: Step | None = None
    last: Step | None = None
    waiting: dict[int, Waiting] = field(default_factory=dict)
    exits: list[Exit] = field(default_factory=list)
    _seen: set[tuple[str, int | None]] = field(default_factory=set)
    _shapes: dict[bytes, str] = field(default_factory=dict)


def scan(path: Path) -> Scan:
    """Read one log, which may be compressed with gzip.

    Raises:
        Refusal: it is not there, cannot be read, or is not text.
    """
    found = Scan(path)
    try:
        with _opened(path) as stream:
            head = stream.read(4096)
            if b"\0" in head:
                raise Refusal(f"{path} is not text", "Give a log.")
            for block, end, lookback in _blocks(stream, head):
                _read_block(found, block, end, lookback)
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Refusal(f"{path} cannot be read: {reason}", "Give the path of a log.") from None
    return found


def _opened(path: Path) -> IO[bytes]:
    stream = path.open("rb")
    magic = stream.read(2)
    stream.seek(0)
    return gzip.GzipFile(fileobj=stream) if magic == b"\x1f\x8b" else stream  # type: ignore[return-value]


def _blocks(stream: IO[bytes], head: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Blocks of a stream: the bytes, where what is to be looked at ends, and where it begins.

    What follows the end is seen again in the next block; what precedes the beginning was in the last.
    """
    kept, begin = b"", 0
    pending = head
    while True:
        more = stream.read(BLOCK_BYTES)
        block = kept + pending + more
        pending = b""
        if not more:
            yield block, len(block), begin
            return
        cut = max(0, len(block) - AHEAD_BYTES)
        end = block.rfind(b"\n", begin, cut) + 1 or cut
        yield block, end, begin
        start = max(0, end - BEHIND_BYTES)
        kept, begin = block[start:], end - start


def _read_block(found: Scan, block: bytes, end: int, begin: int) -> None:
    """Add what ``block[begin:end]`` says."""
    base = found.size - begin  # of the block in its file
    last = last_step(block, end, base)
    if last and (found.last is None or last.offset > found.last.offset):
        found.first = found.first or first_step(block, base)
    previous, number, counted = found.last, found.lines, begin
    for at in _candidates(block, begin, end):
        start, stop = _bounds(block, at, begin)
        number += block.count(b"\n", counted, start)
        counted = start
        _look_at(found, block, start, stop, base, number + 1, previous)
    found.lines += block.count(b"\n", begin, end)
    found.size += end - begin
    if last:
        found.last = last


def _candidates(block: bytes, begin: int, end: int) -> list[int]:
    """Where lines with one of the gates are, in their order, one position a line."""
    low = block.lower()
    positions = set()
    for gate in GATES:
        at = low.find(gate, begin, end)
        while at >= 0:
            positions.add(at)
            newline = low.find(b"\n", at, end)
            at = low.find(gate, newline, end) if newline >= 0 else -1
    return sorted(positions)


def _bounds(block: bytes, at: int, begin: int) -> tuple[int, int]:
    """The line around a position; of one that is too long, what is near the position."""
    low, high = max(0, at - 2 * LONGEST), at + 2 * LONGEST
    start = max(block.rfind(b"\n", low, at), block.rfind(b"\r", low, at)) + 1 or low
    stop = block.find(b"\n", at, high)
    return start, stop if stop >= 0 else min(high, len(block))


def _look_at(found: Scan, block: bytes, start: int, stop: int, base: int, number: int, previous: Step | None) -> None:
    """Take the line ``block[start:stop]`` if a class knows it."""
    if found.sightings and found.sightings[-1].offset == base + start:
        return  # it holds two of the gates
    raw = block[start:stop]
    shape = _DIGITS.sub(b"", raw)
    name = found._shapes.get(shape)
    if name == "" or (name and found.counts[name] >= 4 * KEPT_PER_CLASS):
        if name:
            found.counts[name] += 1
        return
    line = parse_line(raw)
    if is_summary(line.message):
        found.exits += exits_in(block[start : start + AHEAD_BYTES])
    _take_watchdog(found, line)
    known = None if line.message.startswith('File "') else classify(line.message)
    if len(found._shapes) < SHAPES and not any(word in raw for word in _NUMBERED):
        found._shapes[shape] = known[0].name if known else ""
    if not known:
        return
    failure, match = known
    found.counts[failure.name] += 1
    details = {key: value for key, value in match.groupdict().items() if value is not None}
    rank = line.rank if line.rank is not None else rank_of_file(found.path)
    rank = int(details["rank"]) if "rank" in details else rank
    key = (failure.name, rank if rank is not None else line.local_rank)
    if key in found._seen or len(found._seen) >= KEPT_PER_CLASS * 8:
        return
    found._seen.add(key)
    before = last_step(block, start, base) or previous
    step = int(details["step"]) if int(details.get("step", -1)) >= 0 else None
    own = step_in(raw)
    reported = own.step if own else before.step if before else None
    found.sightings.append(
        Sighting(
            known=failure,
            path=found.path,
            number=number,
            offset=base + start,
            text=line.text.strip(),
            message=line.message,
            rank=rank,
            local_rank=line.local_rank if line.local_rank is not None else _local(details),
            host=details.get("host", ""),
            step=step if step is not None else reported,
            when=_time_of(block, start, stop),
            warning=line.warning,
            detail=details,
        )
    )


def _local(details: dict[str, str]) -> int | None:
    return int(details["local_rank"]) if "local_rank" in details else None


def _time_of(block: bytes, start: int, stop: int) -> float | None:
    """The time of a line, or of the nearest line before it that has one."""
    if (own := time_in(block[start:stop].decode(errors="replace"))) is not None:
        return own
    for raw in reversed(block[max(0, start - BEHIND_BYTES) : start].splitlines()[-200:]):
        if (before := time_in(raw.decode(errors="replace"))) is not None:
            return before
    return None


def _take_watchdog(found: Scan, line: Line) -> None:
    """Keep what NCCL's watchdog says of the collective that a rank waited for."""
    if line.rank is None:
        return
    sequence, enqueued = _COLLECTIVE.search(line.message), _ENQUEUED.search(line.message)
    if not sequence and not enqueued:
        return
    waiting = found.waiting.setdefault(line.rank, Waiting(int(sequence[1]) if sequence else -1))
    if operation := _OPERATION.search(line.message):
        waiting.operation = operation[1]
    if enqueued:
        waiting.enqueued, waiting.completed = int(enqueued[1]), int(enqueued[2])
