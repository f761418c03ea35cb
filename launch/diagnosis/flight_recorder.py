"""The dumps of torch's flight recorder: which rank did not enter the collective that the others wait for.

Every rank writes what it enqueued, as a pickle of plain data (torch/csrc/distributed/c10d/FlightRecorder.hpp, torch
2.13). A dump is data here: a pickle that names a class is refused.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slipway.configs import Refusal

NAMES = ("nccl_trace_rank_", "comm_lib_trace_rank_")
LARGEST_BYTES = 1 << 30
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, pickle.UnpicklingError)
_OWN_FRAMES = ("torch/distributed/", "torch/utils/")  # of a stack, the frames that are not the user's


@dataclass(frozen=True)
class Call:
    """One collective as a rank recorded it: its name, the sizes of its input, and the line that called it."""

    name: str
    sizes: str
    caller: str


@dataclass(frozen=True)
class Desync:
    """A collective that not every rank of its group entered.

    Attributes:
        group: the process group.
        sequence: the number of the collective in its group.
        behind: ranks whose last collective is an earlier one.
        silent: ranks of the group that wrote no dump.
        waiting: ranks that entered it.
        other: ranks that called another collective, or one of other sizes, in its place.
    """

    group: str
    sequence: int
    call: Call
    behind: tuple[int, ...]
    silent: tuple[int, ...]
    waiting: tuple[int, ...]
    other: dict[int, Call] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[int, ...]:
        """The ranks that the others wait for."""
        return self.behind or self.silent or tuple(self.other)

    def sentence(self) -> str:
        """What the ranks that wait are waiting for, and for whom."""
        what = f"{self.call.name} number {self.sequence} of {self.group}, input {self.call.sizes}"
        at = f", called at {self.call.caller}" if self.call.caller else ""
        parts = []
        if self.behind:
            parts.append(f"{_ranks(self.behind)} did not enter it")
        if self.silent:
            parts.append(f"{_ranks(self.silent)} wrote no dump")
        for rank, call in self.other.items():
            parts.append(f"rank {rank} called {call.name} with input {call.sizes} instead")
        return f"{_ranks(self.waiting)} wait in {what}{at}; {', '.join(parts)}"


@dataclass(frozen=True)
class _Dump:
    """Of one rank: by group, its last collective and the calls that it recorded."""

    groups: dict[str, str]
    ranks: dict[str, tuple[int, ...]]
    last: dict[str, int]
    calls: dict[str, dict[int, Call]]


def is_dump(path: Path) -> bool:
    """Whether a file is a dump, by its name."""
    return path.name.startswith(NAMES)


def desync_in(paths: list[Path]) -> Desync | None:
    """The collective in which the ranks of these dumps hang; None where all entered the same.

    Raises:
        Refusal: a dump cannot be read.
    """
    dumps = {_rank_of(path): _read(path) for path in paths}
    if not dumps:
        return None
    ids = {group for dump in dumps.values() for group in dump.last}
    found = [one for group in sorted(ids) if (one := _desync(group, dumps))]
    return max(found, key=lambda one: (bool(one.behind), bool(one.other), len(one.waiting)), default=None)


def _desync(group: str, dumps: Mapping[int, _Dump]) -> Desync | None:
    held = {rank: dump for rank, dump in dumps.items() if group in dump.last}
    front = max(dump.last[group] for dump in held.values())
    waiting = tuple(sorted(rank for rank, dump in held.items() if dump.last[group] == front))
    members = next((dump.ranks[group] for dump in held.values() if group in dump.ranks), tuple(held))
    calls = {rank: held[rank].calls[group][front] for rank in waiting if front in held[rank].calls[group]}
    if not calls:
        return None
    usual = Counter((call.name, call.sizes) for call in calls.values()).most_common(1)[0][0]
    other = {rank: call for rank, call in calls.items() if (call.name, call.sizes) != usual}
    behind = tuple(sorted(set(held) - set(waiting)))
    silent = tuple(sorted(set(members) - set(dumps)))
    if not behind and not silent and not other:
        return None
    call = next(call for call in calls.values() if (call.name, call.sizes) == usual)
    name = next((dump.groups[group] for dump in held.values()), group)
    return Desync(name, front, call, behind, silent, tuple(r for r in waiting if r not in other), other)


class _Plain(pickle.Unpickler):
    """Reads plain data only."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _read(path: Path) -> _Dump:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise Refusal(f"{path} is larger than {LARGEST_BYTES >> 30} GiB", "Give the dumps of one run.")
        with path.open("rb") as f:
            return _dump(_Plain(f).load())
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        EOFError,
        pickle.UnpicklingError,
    ) as e:
        raise Refusal(f"{path} is no dump of torch's flight recorder: {e}", "Leave it out.") from None


def _dump(stored: Any) -> _Dump:
    groups: dict[str, str] = {}
    calls: dict[str, dict[int, Call]] = {}
    last: dict[str, int] = {}
    for entry in stored["entries"]:
        if entry["is_p2p"]:
            continue
        group, sequence = str(entry["process_group"][0]), int(entry["collective_seq_id"])
        groups[group] = str(entry["process_group"][1]) or f"group {group}"
        sizes = str(entry["input_sizes"])
        calls.setdefault(group, {})[sequence] = Call(str(entry["profiling_name"]), sizes, _caller(entry["frames"]))
        last[group] = max(last.get(group, 0), sequence)
    ranks = {
        str(name or "0"): tuple(json.loads(config["ranks"])) for name, config in stored.get("pg_config", {}).items()
    }
    return _Dump(groups, ranks, last, calls)


def _caller(frames: Any) -> str:
    """The innermost line of a stack that is not torch's own."""
    for frame in frames:
        if not any(part in frame["filename"] for part in _OWN_FRAMES):
            return f"{frame['filename']}:{frame['line']} ({frame['name']})"
    return ""


def _rank_of(path: Path) -> int:
    digits = path.name.rpartition("_")[2]
    if not digits.isdigit():
        raise Refusal(f"{path} does not end with the number of a rank", "Name it as torch does: nccl_trace_rank_0.")
    return int(digits)


def _ranks(ranks: tuple[int, ...], shown: int = 8) -> str:
    more = f" and {len(ranks) - shown} more" if len(ranks) > shown else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:shown]))}{more}"
