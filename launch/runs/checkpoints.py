"""The checkpoints of a run: which are whole, which files differ from their sums, which may go. No torch, no NeMo."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slipway.configs import Refusal
from slipway.launch.runs.read import CHECKPOINTS
from slipway.recipes.runtime.checkpoint_files import BEING_WRITTEN, UNFINISHED, checkpoints_in, damage, step_of
from slipway.recipes.runtime.checksums import read_sums, wrong_files
from slipway.recipes.runtime.run_lock import holder_of


@dataclass(frozen=True)
class Kept:
    """One checkpoint of a run.

    Attributes:
        size: in bytes, of all its files.
        sums: number of its files that have a checksum.
        wrong: what keeps it from being loaded, in a few words; empty if nothing is known to.
    """

    path: Path
    step: int
    size: int
    files: int
    sums: int
    wrong: str

    @property
    def name(self) -> str:
        return self.path.name


def kept(run: Path) -> list[Kept]:
    """The checkpoints of a run, or the one that ``run`` is, the newest first. Their contents are not read.

    Raises:
        Refusal: there is none.
    """
    if (run / "weights").is_dir():
        return [_kept(run)]
    found = [_kept(path) for path in checkpoints_in(run / CHECKPOINTS)]
    if not found:
        raise Refusal(f"{run} holds no checkpoint", "Give the folder of a run, or of one of its checkpoints.")
    return found


def _kept(path: Path) -> Kept:
    sizes = [each.stat().st_size for each in path.rglob("*") if each.is_file()] if path.is_dir() else []
    sums = len(read_sums(path / "weights"))
    return Kept(path, step_of(path), sum(sizes), len(sizes), sums, damage(path))


def verified(checkpoint: Kept, seen: Callable[[int], None]) -> dict[str, str]:
    """Read the files of a checkpoint: what differs from its sum, by the file's name.

    Args:
        seen: called with the bytes of each file that was read.
    """
    return wrong_files(checkpoint.path / "weights", seen=seen)


def bytes_to_read(checkpoint: Kept) -> int:
    """The bytes that :func:`verified` reads."""
    weights = checkpoint.path / "weights"
    return sum((weights / name).stat().st_size for name in read_sums(weights) if (weights / name).is_file())


def superfluous(run: Path, keep: int, damaged: bool) -> list[Kept]:
    """What pruning removes: the whole checkpoints but the newest ``keep``, and with ``damaged`` those that are not.

    A checkpoint that is being written stays.

    Raises:
        Refusal: a run trains in the folder, which has its own run.keep_checkpoints.
    """
    found = kept(run)
    if holder := holder_of(run):
        raise Refusal(
            f"{run} is in use: {holder.describe()} trains in it",
            "It removes old checkpoints itself (run.keep_checkpoints); prune after its end.",
        )
    whole = [each for each in found if not each.wrong]
    broken = [each for each in found if each.wrong and each.wrong != BEING_WRITTEN]
    return whole[keep:] + (broken if damaged else [])


def remove(checkpoint: Kept) -> None:
    """Remove a checkpoint. It is marked as unfinished meanwhile, so that no part of it is ever resumed from.

    Raises:
        Refusal: it cannot be removed.
    """
    marker = checkpoint.path.with_name(checkpoint.name + UNFINISHED)
    try:
        marker.touch()
        if checkpoint.path.is_dir():
            shutil.rmtree(checkpoint.path)
        else:
            checkpoint.path.unlink()
        marker.unlink()
    except OSError as error:
        raise Refusal(f"{checkpoint.path} cannot be removed: {error.strerror}") from None
