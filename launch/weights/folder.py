"""What the folder of imported weights holds beside its checkpoint, and a folder's files that are no weights."""

from __future__ import annotations

import contextlib
import hashlib
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slipway.configs import Refusal

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any
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


class Checksum:
    """A number that depends on the names, types and bytes of tensors and not on the order in which they come.

    An import and an export of the same weights have the same: the sum of the tensors' BLAKE2b digests.
    """

    def __init__(self) -> None:
        self._sum = 0

    def add(self, name: str, row: int | None, tensor: Tensor) -> None:
        """Count a tensor, or one row of it."""
        import torch

        digest = hashlib.blake2b(f"{name} {row} {tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
        digest.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
        self._sum = (self._sum + int.from_bytes(digest.digest(), "little")) % 2**128

    @property
    def text(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._sum:032x}"


@dataclass(frozen=True)
class Converted:
    """What an import or an export did.

    Attributes:
        tensors: of Hugging Face's folder, and ``bytes`` their sum.
        peak_rss_gib: the most memory that this process has had.
        checksum: of Hugging Face's tensors (:class:`Checksum`); empty for an adapter.
        recipes: those that train a model of its facts.
    """

    family: str
    tensors: int
    bytes: int
    seconds: float
    peak_rss_gib: float
    checksum: str = ""
    recipes: tuple[str, ...] = ()


def peak_rss_gib() -> float:
    """The most memory that this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


def downloaded(source: Path) -> Path:
    """The folder that ``source`` names: itself, or of a model's name on the Hub the newest snapshot in the local cache.

    Raises:
        Refusal: there is no such folder, and the cache (HF_HUB_CACHE) has no such model.
    """
    if source.exists() or source.is_absolute() or len(source.parts) != 2:
        return source
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        raise Refusal(
            f"there is no folder {source}, and the local cache of the Hub has no model of that name",
            f"Download it first: hf download {source}",
        ) from None


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
