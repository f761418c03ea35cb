"""The summary that torchrun prints when a rank has failed: which ranks ended, how, and which first."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from slipway.launch.diagnosis.line import parse_line, time_in

_HEADS = ("Failures:", "Root Cause (first observed failure):")
_FIELD = re.compile(r"^(time|host|rank|exitcode|error_file|traceback) *: *(.*)$")
_RANK = re.compile(r"(\d+) \(local_rank: (\d+)\)")
_CODE = re.compile(r"(-?\d+) +\(pid: (\d+)\)")
_MOST_LINES = 16 * 7  # of one summary that are read: the first ranks of a large node

_BY_TORCHRUN = (signal.SIGTERM, signal.SIGINT)
"""Signals that torchrun itself sends to the ranks that are left."""


@dataclass(frozen=True)
class Exit:
    """How one rank ended. ``code`` is negative for a signal."""

    rank: int
    local_rank: int
    host: str
    code: int
    pid: int
    when: float | None
    first: bool  # torchrun observed it first

    @property
    def signal_name(self) -> str:
        """SIGKILL for a code of -9; empty for an exit code."""
        try:
            return signal.Signals(-self.code).name if self.code < 0 else ""
        except ValueError:
            return f"signal {-self.code}"

    @property
    def by_itself(self) -> bool:
        """It was not ended by torchrun on behalf of another."""
        return not (self.code < 0 and -self.code in _BY_TORCHRUN)


def is_summary(message: str) -> bool:
    """Whether a line is the head of one of the summary's two parts."""
    return message in _HEADS


def exits_in(block: bytes) -> list[Exit]:
    """The ranks of the part of a summary that begins with ``block``."""
    lines = [parse_line(raw).message for raw in block.split(b"\n", _MOST_LINES)[:_MOST_LINES]]
    found: list[Exit] = []
    fields: dict[str, str] = {}
    for message in lines[1:]:
        if message.startswith(("---", "===")) or message in _HEADS:
            break
        if match := _FIELD.match(message):
            fields[match[1]] = match[2]
        if match and match[1] == "traceback":
            found += _exit(fields, lines[0] == _HEADS[1])
            fields = {}
    return found


def _exit(fields: dict[str, str], first: bool) -> list[Exit]:
    rank, code = _RANK.search(fields.get("rank", "")), _CODE.search(fields.get("exitcode", ""))
    if not rank or not code:
        return []
    when = time_in(fields.get("time", ""))
    host = fields.get("host", "").strip()
    return [Exit(int(rank[1]), int(rank[2]), host, int(code[1]), int(code[2]), when, first)]
