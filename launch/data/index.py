"""Megatron's index file, .idx, as megatron.core.datasets.indexed_dataset reads it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODES = {"int32": 4, "uint16": 8}
LARGEST_UINT16_VOCABULARY = 65500  # where DType.optimal_dtype of Megatron-Core changes to int32


def token_dtype(vocab_size: int) -> str:
    """The NumPy type in which Megatron stores the ids of a vocabulary."""
    return "uint16" if vocab_size <= LARGEST_UINT16_VOCABULARY else "int32"


def write_index(path: Path, lengths: np.ndarray, dtype: str) -> None:
    """Write the index of documents of one sequence each.

    After the header come the lengths (int32), the byte offsets in the .bin file (int64) and the bounds of the documents
    (int64).

    Args:
        lengths: tokens of each document, (documents,).
        dtype: int32 or uint16, the type of the tokens.
    """
    item_bytes = np.dtype(dtype).itemsize
    offsets = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1].astype(np.int64) * item_bytes, out=offsets[1:])
    with path.open("wb") as f:
        f.write(MAGIC + struct.pack("<QB", VERSION, DTYPE_CODES[dtype]))
        f.write(struct.pack("<QQ", len(lengths), len(lengths) + 1))
        f.write(lengths.astype(np.int32).tobytes() + offsets.tobytes())
        f.write(np.arange(len(lengths) + 1, dtype=np.int64).tobytes())
        f.flush()
        os.fsync(f.fileno())
