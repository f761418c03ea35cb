"""Folders of .safetensors files, read and written one tensor at a time.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name -> dtype, shape, first and last byte
after the header), and the bytes (https://huggingface.co/docs/safetensors, "Format"). The tensors are not mapped into
memory, where they would count as this process's memory, but read by their offsets.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from slipway.configs import Refusal

# In the order in which the format's library sorts them, the last first, before it sorts by name.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = list(DTYPES)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5 * 10**9  # transformers' max_shard_size
_LENGTH = 8  # bytes that hold the header's length
_LONGEST_HEADER = 100 * 10**6  # bytes: the format's limit


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Folder:
    """The tensors of a folder, by name.

    Raises:
        Refusal: there are none, or a file is missing, cut short or not in the format.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        index = folder / INDEX
        self.tensors: dict[str, Stored] = {}
        if not index.is_file():
            for file in _only_file(folder):
                self.tensors |= _header(file)
            return
        where = _json(index).get("weight_map")
        if not isinstance(where, dict):
            raise Refusal(f"{index} has no weight_map", "Download the folder again.")
        for name in sorted(set(where.values())):
            if not (folder / name).is_file():
                raise Refusal(f"{folder} lacks {name}, which its index names", "Download the folder again.")
            self.tensors |= _header(folder / name)
        for name, file in where.items():
            if name not in self.tensors or self.tensors[name].file.name != file:
                raise Refusal(f"{folder / file} lacks {name}, which {INDEX} promises", "Download the folder again.")

    def read(self, name: str, row: int | None = None) -> torch.Tensor:
        """A tensor, or one row of it."""
        stored = self.tensors[name]
        shape = stored.shape if row is None else stored.shape[1:]
        tensor = torch.empty(shape, dtype=stored.dtype)
        _fill(stored.file, stored.start + (row or 0) * tensor.nbytes, tensor)
        return tensor


def _only_file(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise Refusal(f"{folder} has {len(files)} .safetensors files and no {INDEX}", "Download the folder again.")
    others = sorted(file.name for kind in ("*.bin", "*.pth", "*.gguf") for file in folder.glob(kind))
    held = f"; it has {others[0]}" if others else ""
    raise Refusal(
        f"{folder} has no .safetensors files{held}",
        "Save the model with transformers' save_pretrained, which writes them.",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text())
    except ValueError:
        held = None
    if not isinstance(held, dict):
        raise Refusal(f"{path} is not a JSON object", "Download the folder again.")
    return held


def _header(file: Path) -> dict[str, Stored]:
    """What a file holds, after checking that it is as long as it says."""
    size = file.stat().st_size
    with file.open("rb") as f:
        length = int.from_bytes(f.read(_LENGTH), "little")
        try:
            if size < _LENGTH or length > min(size - _LENGTH, _LONGEST_HEADER):
                raise ValueError
            header = json.loads(f.read(length))
            first = _LENGTH + length
            held = {
                name: Stored(file, DTYPES[at["dtype"]], tuple(at["shape"]), first + at["data_offsets"][0])
                for name, at in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            raise Refusal(f"{file} is not in the safetensors format", "Download it again.") from None
    needed = max((stored.start + stored.nbytes for stored in held.values()), default=first)
    if size < needed:
        raise Refusal(f"{file} is cut short: {size:,} of {needed:,} bytes", "Download it again.")
    return held


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _fill(file: Path, offset: int, tensor: torch.Tensor) -> None:
    view = _bytes(tensor)
    with file.open("rb", buffering=0) as f:
        f.seek(offset)
        done = 0
        while done < len(view):  # one call reads at most 2 GiB
            count = f.readinto(view[done:])
            if not count:
                raise Refusal(f"{file} became shorter while it was read", "Download it again.")
            done += count


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Writer:
    """Writes a folder as transformers does: the same files, shards and index, with their tensors in any order.

    Use it as a context manager; the index is written when it ends.

    Args:
        tensors: in the order in which they fill the shards.
    """

    def __init__(self, folder: Path, tensors: Iterable[Planned], shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = folder
        self.shards = _shards(list(tensors), shard_bytes)
        self._where: dict[str, tuple[BinaryIO, int, Planned]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Writer:
        for name, shard in self.shards.items():
            file = self._stack.enter_context((self.folder / name).open("wb", buffering=0))
            self._begin(file, shard)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            for file in {id(file): file for file, _, _ in self._where.values()}.values():
                os.fsync(file.fileno())
            self._write_index()
        self._stack.close()

    def _begin(self, file: BinaryIO, shard: list[Planned]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for planned in sorted(shard, key=lambda t: (-_ORDER.index(_NAMES[t.dtype]), t.name)):
            header[planned.name] = {
                "dtype": _NAMES[planned.dtype],
                "shape": list(planned.shape),
                "data_offsets": [end, end + planned.nbytes],
            }
            end += planned.nbytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _LENGTH)
        file.write(len(text).to_bytes(_LENGTH, "little") + text)
        first = _LENGTH + len(text)
        os.ftruncate(file.fileno(), first + end)
        for planned in shard:
            offset = first + header[planned.name]["data_offsets"][0]
            self._where[planned.name] = (file, offset, planned)

    def write(self, name: str, tensor: torch.Tensor, row: int | None = None) -> None:
        """Write a tensor, or one row of it."""
        file, offset, planned = self._where[name]
        assert tensor.dtype == planned.dtype, (name, tensor.dtype)
        assert tuple(tensor.shape) == (planned.shape if row is None else planned.shape[1:]), (name, tensor.shape)
        view = _bytes(tensor.contiguous())
        offset += (row or 0) * len(view)
        done = 0
        while done < len(view):
            done += os.pwrite(file.fileno(), view[done:], offset + done)

    def _write_index(self) -> None:
        if list(self.shards) == [SINGLE]:
            return
        tensors = [planned for shard in self.shards.values() for planned in shard]
        index = {
            "metadata": {
                "total_parameters": sum(math.prod(planned.shape) for planned in tensors),
                "total_size": sum(planned.nbytes for planned in tensors),
            },
            "weight_map": {planned.name: file for file, shard in self.shards.items() for planned in shard},
        }
        (self.folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _shards(tensors: list[Planned], most: int) -> dict[str, list[Planned]]:
    """File name -> its tensors. A tensor that is larger than a shard gets one of its own (huggingface_hub's
    split_state_dict_into_shards_factory).
    """
    every: list[list[Planned]] = []
    current: list[Planned] = []
    size = 0
    for planned in tensors:
        if planned.nbytes > most:
            every.append([planned])
            continue
        if size + planned.nbytes > most:
            every.append(current)
            current, size = [], 0
        current.append(planned)
        size += planned.nbytes
    if current:
        every.append(current)
    if len(every) == 1:
        return {SINGLE: every[0]}
    return {f"model-{i:05d}-of-{len(every):05d}.safetensors": shard for i, shard in enumerate(every, 1)}
