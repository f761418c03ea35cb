"""SLURM's way of writing time. Imports nothing of ours."""

from __future__ import annotations

import re


def seconds(limit: str) -> int | None:
    """A time limit as SLURM writes them, in seconds: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None for what sbatch should judge."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if not found:
        return None
    days, *rest = (int(g) if g is not None else None for g in found.groups())
    given = [r for r in rest if r is not None]
    if days is not None:
        hours, minutes, secs = [*given, 0, 0][:3]
    elif len(given) == 3:
        hours, minutes, secs = given
    else:
        hours, (minutes, secs) = 0, [*given, 0][:2]
    return ((days or 0) * 24 + hours) * 3600 + minutes * 60 + secs
