"""The documents of a corpus: divided into units of work, and read in bounded memory.

A unit is what one worker reads: a range of bytes of a .jsonl file, a row group of a parquet file, record batches of an
arrow file, a compressed file, or several small files. Its pieces are blocks of lines or lists of texts, of about
:data:`BLOCK_BYTES`. The units and the pieces depend on the files alone, so that work can be continued.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slipway.configs import Refusal
from slipway.launch.data.compressed import cut_at_lines, decompressed
from slipway.launch.data.documents import Format, Source

BLOCK_BYTES = 16 << 20  # of text: what is read, tokenized and kept as a unit
LONGEST_DOCUMENT_BYTES = 1 << 30  # a longer line is a file without line ends rather than a document
SMALL_STREAM = 4  # a compressed file is grouped with its neighbours up to this part of a block


@dataclass(frozen=True)
class Part:
    """A part of a file: bytes of .jsonl, row groups of parquet, record batches of arrow, else the whole file."""

    source: Source
    start: int
    stop: int


@dataclass(frozen=True)
class Unit:
    """What one worker reads. ``size_bytes`` is on disk."""

    number: int
    parts: tuple[Part, ...]
    size_bytes: int

    @property
    def is_stream(self) -> bool:
        """Whether it is one large compressed file, which can only be read from its start."""
        source = self.parts[0].source
        return (
            source.format is Format.JSONL
            and bool(source.compression)
            and source.size_bytes > BLOCK_BYTES // SMALL_STREAM
        )


@dataclass(frozen=True)
class Lines:
    """Whole lines of a .jsonl file, the first at byte ``offset`` of its text."""

    path: Path
    offset: int
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class Texts:
    """Documents that are read already; ``bad`` are left out."""

    texts: list[str]
    bad: int = 0

    @property
    def size(self) -> int:
        return sum(map(len, self.texts))


Piece = Lines | Texts


def divide(sources: Sequence[Source], field: str) -> list[Unit]:
    """The units of a corpus, in its order: each about :data:`BLOCK_BYTES`, except what cannot be divided."""
    units: list[Unit] = []
    group: list[Part] = []
    held = 0

    def close() -> None:
        nonlocal held
        if group:
            units.append(Unit(len(units), tuple(group), held))
            group.clear()
            held = 0

    for source in sources:
        for part, size_bytes in _parts(source, field):
            limit = BLOCK_BYTES // SMALL_STREAM if source.compression else BLOCK_BYTES
            if held + size_bytes > limit:
                close()
            group.append(part)
            held += size_bytes
            if held >= limit:
                close()
    close()
    return units


def _parts(source: Source, field: str) -> Iterator[tuple[Part, int]]:
    """The parts of a file, and their sizes on disk in bytes."""
    size = source.size_bytes
    if source.format in (Format.PARQUET, Format.ARROW):
        from slipway.launch.data.tables import table_parts

        for start, stop, size_bytes in table_parts(source, field, BLOCK_BYTES):
            yield Part(source, start, stop), size_bytes
    elif source.format is Format.TEXT or source.compression or not size:
        yield Part(source, 0, size), size
    else:
        for start in range(0, size, BLOCK_BYTES):
            stop = min(start + BLOCK_BYTES, size)
            yield Part(source, start, stop), stop - start


def pieces(part: Part, field: str, skip_bad: bool, read: Callable[[int], None] = lambda count: None) -> Iterator[Piece]:
    """The pieces of one part of a file.

    Args:
        read: called with the bytes of a compressed file that have been read.

    Raises:
        Refusal: a file that is damaged or, unless ``skip_bad``, holds what is no text.
    """
    source = part.source
    if source.format in (Format.PARQUET, Format.ARROW):
        from slipway.launch.data.tables import table_texts

        yield from table_texts(source, part.start, part.stop, field, skip_bad, BLOCK_BYTES)
    elif source.format is Format.TEXT:
        content = b"".join(decompressed(source.path, source.compression))
        try:
            yield Texts([_decode(content, source.path, 0)])
        except Refusal:
            if not skip_bad:
                raise
            yield Texts([], bad=1)
    elif source.compression:
        offset, stream = 0, decompressed(source.path, source.compression, read)
        for block in cut_at_lines(stream, BLOCK_BYTES, LONGEST_DOCUMENT_BYTES):
            yield Lines(source.path, offset, block)
            offset += len(block)
    else:
        yield _lines_between(source.path, part.start, part.stop)


def _lines_between(path: Path, start: int, stop: int) -> Lines:
    """The lines that begin in the bytes ``start`` to ``stop`` of a file."""
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            start += len(file.readline(LONGEST_DOCUMENT_BYTES)) - 1
        if start >= stop:
            return Lines(path, start, b"")
        file.seek(start)
        data = file.read(stop - start)
        if data and not data.endswith(b"\n"):
            data += file.readline(LONGEST_DOCUMENT_BYTES)
    return Lines(path, start, data)


def texts_of(piece: Piece, field: str, skip_bad: bool) -> Texts:
    """The documents of a piece: of lines, the ``field`` of each line that is not empty.

    Raises:
        Refusal: unless ``skip_bad``, a line that is not UTF-8 or not JSON with such a field.
    """
    if isinstance(piece, Texts):
        return piece
    texts: list[str] = []
    bad, offset = 0, piece.offset
    for line in piece.data.split(b"\n"):
        if not offset:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            try:
                texts.append(_field_of(line, piece.path, offset, field))
            except Refusal:
                if not skip_bad:
                    raise
                bad += 1
        offset += len(line) + 1
    return Texts(texts, bad)


def _field_of(line: bytes, path: Path, offset: int, field: str) -> str:
    if len(line) >= LONGEST_DOCUMENT_BYTES:
        raise Refusal(f"{path}: the line at byte {offset:,} is longer than 1 GiB", "Write one document a line.")
    text = _decode(line, path, offset)
    fix = "Name the field with --field, or pass --skip-bad to leave out such lines."
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or field not in found:
        fields = f"; it has {', '.join(list(found)[:8])}" if isinstance(found, dict) and found else ""
        raise Refusal(f"{path}: the line at byte {offset} is not a JSON object with a field {field}{fields}", fix)
    value = found[field]
    if not isinstance(value, str):
        raise Refusal(f"{path}: the field {field} of the line at byte {offset} is not a string", fix)
    if b"\\ud" in line or b"\\uD" in line:
        require_unicode(value, f"{path}: the line at byte {offset}")
    return value


def require_unicode(text: str, where: str) -> None:
    """Refuse a text that holds half of a surrogate pair, which no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refusal(
            f"{where} holds half of a surrogate pair, which is not text", "Fix it, or pass --skip-bad to leave it out."
        ) from None


def _decode(data: bytes, path: Path, offset: int) -> str:
    """``data``, which starts at byte ``offset`` of ``path``, as text."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(
            f"{path} is not UTF-8 at byte {offset + error.start}",
            "Fix the file, leave it out, or pass --skip-bad to leave out all such documents.",
        ) from None


def texts(sources: Sequence[Source], field: str, skip_bad: bool) -> Iterator[str]:
    """Every document of a corpus, in order."""
    for unit in divide(sources, field):
        for part in unit.parts:
            for piece in pieces(part, field, skip_bad):
                yield from texts_of(piece, field, skip_bad).texts
