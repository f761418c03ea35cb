"""The SHA-256 of every file of a checkpoint, in the format of sha256sum: ``weights/SHA256SUMS``. No torch, no NeMo."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from slipway.recipes.runtime.data_manifest import sha256_of

SUMS = "SHA256SUMS"
THREADS = 8  # hashing is without Python's lock, and a parallel file system gives one reader a fraction of its speed


def read_sums(weights: Path) -> dict[str, str]:
    """File name -> SHA-256 of a checkpoint's folder of weights; empty for a checkpoint that was written without."""
    path = weights / SUMS
    if not path.is_file():
        return {}
    pairs = (line.split("  ", 1) for line in path.read_text(errors="replace").splitlines() if "  " in line)
    return {name: digest for digest, name in pairs}


def write_sums(weights: Path, sums: dict[str, str]) -> None:
    """Write the sums atomically."""
    temporary = weights / f"{SUMS}.tmp"
    temporary.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
    temporary.replace(weights / SUMS)


def wrong_files(
    weights: Path, names: Iterable[str] | None = None, seen: Callable[[int], None] = lambda size: None
) -> dict[str, str]:
    """What differs from its sum: file name -> what is wrong with it, in a few words.

    Args:
        names: those to read; all of the checkpoint by default.
        seen: called with the bytes of each file that was read.
    """
    sums = read_sums(weights)

    def look(name: str) -> tuple[str, str]:
        path = weights / name
        try:
            found = sha256_of(path)
            seen(path.stat().st_size)
        except OSError as error:
            return name, f"cannot be read: {error.strerror}"
        return name, "" if found == sums[name] else "differs from its SHA-256"

    with ThreadPoolExecutor(THREADS) as pool:
        looked = pool.map(look, sorted(sums) if names is None else names)
        return {name: wrong for name, wrong in looked if wrong}


def shares(weights: Path, parts: int) -> list[list[str]]:
    """The files that have a sum, dealt out so that each part has about as many bytes; a lost file counts as empty."""
    sizes = {name: path.stat().st_size if (path := weights / name).is_file() else 0 for name in read_sums(weights)}
    dealt: list[list[str]] = [[] for _ in range(parts)]
    total = [0] * parts
    for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        least = total.index(min(total))
        dealt[least].append(name)
        total[least] += size
    return dealt
