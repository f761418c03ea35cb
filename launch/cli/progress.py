"""Progress on stderr: a line that counts, and a bar of bytes, the one part of the command line that rich prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

SILENT_S = 1.0  # what takes no longer prints no progress


def counted(what: str, items: Iterable[T], total: int) -> Iterator[T]:
    """The items; on a terminal, a line that says how many are done once they take more than a second."""
    began, shown = time.monotonic(), False
    for done, item in enumerate(items, 1):
        if sys.stderr.isatty() and time.monotonic() - began > SILENT_S:
            print(f"\r{done} of {total} {what}", end="", file=sys.stderr, flush=True)
            shown = True
        yield item
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def transfer_bar(description: str) -> Any:
    """A progress bar of bytes on stderr (a ``rich.progress.Progress``)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        TextColumn(description, markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
