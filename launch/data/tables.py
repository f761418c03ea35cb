"""Columns of text in parquet and arrow files, read with pyarrow a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slipway.configs import Refusal
from slipway.launch.data.documents import Format, Source
from slipway.launch.data.optional import need
from slipway.launch.data.reading import Texts

ROWS = 1000  # of a parquet file at a time


def _arrow() -> Any:
    return need("pyarrow", "parquet and arrow files")


def table_parts(source: Source, field: str, block_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Row groups of parquet or record batches of arrow: first, end and size in bytes on disk.

    Raises:
        Refusal: the file is damaged, or has no column ``field`` of text.
    """
    _arrow()
    if source.format is Format.PARQUET:
        yield from _row_groups(source, field)
    else:
        yield from _record_batches(source, field, block_bytes)


def _require_column(schema: Any, field: str, source: Source) -> None:
    import pyarrow.types as types

    if field not in schema.names:
        raise Refusal(
            f"{source.path} has no column {field}; it has {', '.join(schema.names)}", "Name the column with --field."
        )
    kind = schema.field(field).type
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise Refusal(f"the column {field} of {source.path} is {kind}, not text", "Name another with --field.")


def _row_groups(source: Source, field: str) -> Iterator[tuple[int, int, int]]:
    with _open_parquet(source) as file:
        _require_column(file.schema_arrow, field, source)
        for i in range(file.num_row_groups):
            group = file.metadata.row_group(i)
            stored = [group.column(c) for c in range(group.num_columns)]
            yield i, i + 1, sum(c.total_compressed_size for c in stored if c.path_in_schema == field)


def _open_parquet(source: Source) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(source.path, memory_map=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise Refusal(f"{source.path} is not a whole parquet file: {_first_line(error)}", "Copy it again.") from None


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0].rstrip(".")


def _arrow_batches(source: Source) -> tuple[Any, Iterator[Any]]:
    """The schema and the record batches of an arrow file of either kind, mapped and not read."""
    import pyarrow
    import pyarrow.ipc

    mapped = pyarrow.memory_map(str(source.path))
    try:
        file = pyarrow.ipc.open_file(mapped)
        return file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
    except pyarrow.ArrowInvalid:
        mapped.seek(0)
    stream = pyarrow.ipc.open_stream(mapped)
    return stream.schema, iter(stream)


def _record_batches(source: Source, field: str, block_bytes: int) -> Iterator[tuple[int, int, int]]:
    import pyarrow

    start = count = held = 0
    try:
        schema, batches = _arrow_batches(source)
        _require_column(schema, field, source)
        for count, batch in enumerate(batches, 1):
            held += batch.column(field).nbytes
            if held >= block_bytes:
                yield start, count, held
                start, held = count, 0
    except pyarrow.ArrowException as error:
        raise Refusal(f"{source.path} is not a whole arrow file: {_first_line(error)}", "Copy it again.") from None
    if count > start:
        yield start, count, held


def table_texts(source: Source, start: int, stop: int, field: str, skip_bad: bool, block_bytes: int) -> Iterator[Texts]:
    """The texts of row groups or record batches, in pieces of about ``block_bytes``.

    Raises:
        Refusal: the file is damaged or, unless ``skip_bad``, a row has no text.
    """
    texts: list[str] = []
    size = bad = 0
    for batch in _batches(source, start, stop, field):
        for text in batch:
            if text is None:
                if not skip_bad:
                    raise Refusal(f"{source.path} has a row without {field}", "Pass --skip-bad to leave out such rows.")
                bad += 1
                continue
            texts.append(text)
            size += len(text)
        if size >= block_bytes:
            yield Texts(texts, bad)
            texts, size, bad = [], 0, 0
    if texts or bad:
        yield Texts(texts, bad)


def _batches(source: Source, start: int, stop: int, field: str) -> Iterator[list[str | None]]:
    pyarrow = _arrow()
    try:
        if source.format is Format.PARQUET:
            with _open_parquet(source) as file:
                groups = list(range(start, stop))
                for batch in file.iter_batches(ROWS, row_groups=groups, columns=[field], use_threads=False):
                    yield batch.column(0).to_pylist()
        else:
            _, batches = _arrow_batches(source)
            for i, batch in enumerate(batches):
                if i >= stop:
                    break
                if i >= start:
                    yield batch.column(field).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{source.path} cannot be read: {_first_line(error)}", "Copy it again.") from None
