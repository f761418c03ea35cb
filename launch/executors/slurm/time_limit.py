"""Time limits as SLURM writes them. Imports nothing of ours."""

from __future__ import annotations

import re


def time_limit_seconds(limit: str) -> int | None:
    """Seconds of M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; None for anything else, which is left to sbatch."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if not found:
        return None
    days, *rest = (int(group) if group is not None else None for group in found.groups())
    given = [number for number in rest if number is not None]
    if days is not None:
        hours, minutes, seconds = [*given, 0, 0][:3]
    elif len(given) == 3:
        hours, minutes, seconds = given
    else:
        hours, (minutes, seconds) = 0, [*given, 0][:2]
    return ((days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds
