"""Megatron's index file, .idx, as megatron.core.datasets.indexed_dataset reads it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODES = {"int32": 4, "uint16": 8}
SMALLEST_INT32_VOCABULARY = 65500  # where DType.optimal_dtype of Megatron-Core changes to int32
CHUNK = 1 << 20  # documents at a time


def token_dtype(vocab_size: int) -> str:
    """The NumPy type in which Megatron stores the ids of a vocabulary."""
    return "uint16" if vocab_size < SMALLEST_INT32_VOCABULARY else "int32"


def write_index(path: Path, lengths: np.ndarray, dtype: str) -> None:
    """Write the index of documents of one sequence each, in bounded memory.

    After the header come the lengths (int32), the byte offsets in the .bin file (int64) and the bounds of the documents
    (int64). A document without tokens has bounds and no sequence, as in Megatron's own files.

    Args:
        lengths: tokens of each document, (documents,), int32; it may be mapped from a file.
        dtype: int32 or uint16, the type of the tokens.
    """
    item_bytes = np.dtype(dtype).itemsize
    sequences = sum(int(np.count_nonzero(chunk)) for chunk in _chunks(lengths))
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<QB", VERSION, DTYPE_CODES[dtype]))
        file.write(struct.pack("<QQ", sequences, len(lengths) + 1))
        for chunk in _chunks(lengths):
            file.write(chunk[chunk > 0].astype(np.int32).tobytes())
        offset = 0
        for chunk in _chunks(lengths):
            ends = offset + np.cumsum(chunk[chunk > 0], dtype=np.int64) * item_bytes
            file.write(np.concatenate(([offset], ends[:-1])).astype(np.int64).tobytes() if len(ends) else b"")
            offset = int(ends[-1]) if len(ends) else offset
        bound = 0
        file.write(struct.pack("<q", bound))
        for chunk in _chunks(lengths):
            bounds = bound + np.cumsum(chunk > 0, dtype=np.int64)
            file.write(bounds.tobytes())
            bound = int(bounds[-1])
        file.flush()
        os.fsync(file.fileno())


def _chunks(lengths: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(lengths), CHUNK):
        yield lengths[start : start + CHUNK]
