"""What one line of a log says beside its message: the rank, the host, the time, and whether it is only a warning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

LONGEST = 2000  # characters of a line that are kept

# In front of a message: NeMo-Run's task, torchrun's --tee, torch's rank, srun --label, Ray, mpirun.
_PREFIX = re.compile(
    r"^(?:\s*(?:[\w.-]+/\d+ |\[[A-Za-z_]+\d+\]:|\d+: (?=\S)|\([\w() -]+ pid=\d+[^)]*\)|"
    r"\[\d+,\d+\]<std\w+>:|\[\d+\] (?=\S)|i\.\w+/\d+ ))+"
)
_RANKS = (
    re.compile(r"\[rank(\d+)\]"),
    re.compile(r"\[Rank (\d+)\]"),
    re.compile(r"\bRank (\d+)[:,]"),
    re.compile(r"^\s*(\d+): (?=\S)"),
)
_LOCAL_RANK = re.compile(r"^\s*(?:[\w./-]+ )?\[(?!rank)[A-Za-z_]+(\d+)\]:")  # torchrun's role and local rank
_RANK_OF_FILE = (
    re.compile(r"globalrank-(\d+)"),
    re.compile(r"(?:^|[/_-])rank[_-]?(\d+)(?:\.\w+)?$"),
    re.compile(r"attempt_\d+/(\d+)/std(?:out|err)\.log$"),
)
_WARNING = re.compile(r"\[NeMo W |Warning\b|\bWARNING\b|^W\d{4} |^\[W\d{3,4} |DeprecationWarning")
_ISO = re.compile(r"(\d{4})-(\d\d)-(\d\d)[T _](\d\d):(\d\d):(\d\d)(?:[.,](\d+))?")
_GLOG = re.compile(r"\b[EWIF](\d\d)(\d\d) (\d\d):(\d\d):(\d\d)\.(\d+)")
_GLOG_SHORT = re.compile(r"\[[EWIF](\d?\d)(\d\d) (\d\d):(\d\d):(\d\d)\.(\d+)")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Line:
    """One line of a log.

    Attributes:
        text: as it was written, without a terminal's escape sequences, at most :data:`LONGEST` characters.
        message: ``text`` without what launchers write in front of it.
    """

    text: str
    message: str
    rank: int | None
    local_rank: int | None
    warning: bool


def parse_line(raw: bytes) -> Line:
    """A line of a log, from its bytes."""
    text = _ESCAPES.sub("", raw[: 4 * LONGEST].decode(errors="replace"))[:LONGEST].strip("\r\n")
    message = _PREFIX.sub("", text, count=1).strip()
    rank = next((int(found[1]) for pattern in _RANKS if (found := pattern.search(text))), None)
    local = _LOCAL_RANK.search(text)
    return Line(text, message, rank, int(local[1]) if local else None, bool(_WARNING.search(message)))


def rank_of_file(path: Path) -> int | None:
    """The rank that wrote a file, by its name; None where it is of several, or does not say."""
    name = path.as_posix()
    return next((int(found[1]) for pattern in _RANK_OF_FILE if (found := pattern.search(name))), None)


def time_in(text: str) -> float | None:
    """The first time in a text, as seconds since the Unix epoch by a clock without a zone; None without one.

    glog's times have no year: they get this year, or the last where that would be in the future.
    """
    try:
        if found := _ISO.search(text):
            year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
            fraction = float(f"0.{found[7] or 0}")
            return datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc).timestamp() + fraction
        if found := _GLOG.search(text) or _GLOG_SHORT.search(text):
            return _without_year(*(int(part) for part in found.groups()[:5])) + float(f"0.{found[6]}")
    except ValueError:  # 31st of February
        return None
    return None


def _without_year(month: int, day: int, hour: int, minute: int, second: int) -> float:
    now = datetime.now(timezone.utc)
    then = datetime(now.year, month, day, hour, minute, second, tzinfo=timezone.utc)
    ahead = (then - now).days > 1
    return (then.replace(year=now.year - 1) if ahead else then).timestamp()
