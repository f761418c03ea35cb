"""The progress bar, the one part of the command line that is printed with rich."""

from __future__ import annotations

from typing import Any


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
