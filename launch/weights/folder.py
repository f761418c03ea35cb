"""What the folder of imported weights holds beside its checkpoint, and a folder's files that are no weights."""

from __future__ import annotations

import contextlib
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from slipway.configs import Refusal
from slipway.recipes.runtime.run_files import IMPORTED_FILES

HUGGING_FACE = IMPORTED_FILES  # folder of the files below
GENERATION = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json tokenizer.model vocab.json "
    "merges.txt vocab.txt chat_template.jinja chat_template.json"
).split()
_SPARE_BYTES = 64 << 20  # free space beside the weights: headers, indices, tokenizers

Progress = Callable[[int, int], None]
"""Called with the bytes of tensors that are done and the total."""


@dataclass(frozen=True)
class Converted:
    """What an import or an export did.

    Attributes:
        tensors: of Hugging Face's folder, and ``bytes`` their sum.
        peak_rss_gib: the most memory that this process has had.
        recipes: those that train a model of its facts.
    """

    family: str
    tensors: int
    bytes: int
    seconds: float
    peak_rss_gib: float
    recipes: tuple[str, ...] = ()


def peak_rss_gib() -> float:
    """The most memory that this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


def copy_files(source: Path, target: Path, *names: str) -> None:
    """Copy the files of these names that there are."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


@contextlib.contextmanager
def new_folder(target: Path, needed_bytes: int) -> Iterator[Path]:
    """A folder to write in, which gets its name at the end, or does not stay.

    Raises:
        Refusal: it exists, it cannot be made, or the disk is too small or becomes full.
    """
    if target.exists():
        raise Refusal(f"{target} is already there", "Give another --out.")
    partial = target.with_name(f"{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < needed_bytes + _SPARE_BYTES:
            raise Refusal(
                f"{target} needs {_gib(needed_bytes)} and its disk has {_gib(free)} free", "Give an --out elsewhere."
            )
        yield partial
        partial.rename(target)
    except OSError as error:
        raise Refusal(f"{target} could not be written: {error.strerror or error}", "Give an --out elsewhere.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._start, 3)
