"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What is found and what is wanted.

    Attributes:
        subject: what was examined, such as a package or a partition.
        found: what is there.
        wanted: what should be there.
        good: whether nothing needs to be done.
        fix: the command or setting that fixes it; printed only where ``good`` is False.
        slows: whether it only slows runs down, where it is not good; else it stops them or makes them wrong.
    """

    subject: str
    found: str
    wanted: str
    good: bool
    fix: str = ""
    slows: bool = False
