"""Read gzip and Zstandard files as a stream, and tell a file that is cut short."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from slipway.configs import Refusal
from slipway.launch.data.optional import need

COMPRESSIONS = {"gz": "gunzip", "zst": "unzstd"}
"""Each compression, and the program that undoes it."""

_SUFFIXES = {".gz": "gz", ".zst": "zst", ".zstd": "zst"}
READ_BYTES = 1 << 17  # of compressed input at a time


def compression_of(path: Path) -> str:
    """The key of :data:`COMPRESSIONS` that a file's name says, or nothing."""
    return _SUFFIXES.get(path.suffix.lower(), "")


def _decompressor(compression: str) -> Callable[[], Any]:
    """What makes a decompressor of one gzip member or Zstandard frame."""
    if compression == "gz":
        return lambda: zlib.decompressobj(wbits=31)
    zstandard = need("zstandard", ".zst files")
    return lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def decompressed(path: Path, compression: str, done: Callable[[int], None] = lambda count: None) -> Iterator[bytes]:
    """The content of ``path`` in pieces: of each member or frame after the other.

    Args:
        compression: a key of :data:`COMPRESSIONS`, or empty.
        done: called with the bytes of the file that have been read.

    Raises:
        Refusal: the file is damaged or cut short, or a library is missing.
    """
    with path.open("rb") as file:
        if not compression:
            while data := file.read(1 << 20):
                done(file.tell())
                yield data
            return
        make = _decompressor(compression)
        one, begun = make(), False
        while data := file.read(READ_BYTES):
            done(file.tell())
            while data:
                if not begun and not data.strip(b"\0"):
                    break  # gzip files may be padded with zeros
                try:
                    yield one.decompress(data)
                except Exception as error:  # zlib.error, zstandard.ZstdError
                    raise Refusal(f"{path} is not a whole .{compression} file: {error}") from None
                begun = True
                data = b""
                if one.eof:
                    data, one, begun = one.unused_data, make(), False
    if begun:
        raise Refusal(f"{path} is cut short: its .{compression} stream does not end", "Copy it again.")


def first_bytes(path: Path, compression: str, count: int) -> bytes:
    """The first ``count`` bytes of a file's content, or all of it."""
    found = b""
    for data in decompressed(path, compression):
        found += data
        if len(found) >= count:
            break
    return found[:count]


def cut_at_lines(pieces: Iterator[bytes], size_bytes: int, longest_bytes: int) -> Iterator[bytes]:
    """Join ``pieces`` to blocks of ``size_bytes`` or more that end with a line, or with ``longest_bytes``."""
    held: list[bytes] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        end = len(piece) if count >= longest_bytes else piece.rfind(b"\n") + 1
        if count < size_bytes or not end:
            continue
        held[-1] = piece[:end]
        yield b"".join(held)
        held, count = [piece[end:]], len(piece) - end
    if count:
        yield b"".join(held)
