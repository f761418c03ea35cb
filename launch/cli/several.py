"""Several runs below one folder, of which one that cannot be read does not hide the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from slipway.configs import Refusal
from slipway.launch.cli.printing import note

T = TypeVar("T")


def read_each(paths: list[Path], read: Callable[[Path], T], folder: Path) -> list[T]:
    """What ``read`` makes of each run. Of several, one that cannot be read is left out with a note.

    Raises:
        Refusal: none of the runs in ``folder`` can be read.
    """
    found = []
    for path in paths:
        try:
            found.append(read(path))
        except Refusal as refusal:
            if len(paths) == 1:
                raise
            note(f"slipway: left out: {refusal.sentence()}")
    if not found:
        raise Refusal(f"none of the {len(paths)} runs in {folder} can be read")
    return found
