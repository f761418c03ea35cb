"""The files of a corpus: which there are, and in which format each is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from slipway.configs import Refusal
from slipway.launch.data.compressed import COMPRESSIONS, compression_of, first_bytes

PEEK_BYTES = 1 << 20  # of a file, to guess its format
DATASET_STATE, DATASET_SPLITS = "state.json", "dataset_dict.json"  # of a folder that datasets.save_to_disk wrote


class Format(str, Enum):
    """How a file holds documents."""

    TEXT = "text"
    JSONL = "jsonl"
    PARQUET = "parquet"
    ARROW = "arrow"


LINES = (".jsonl", ".ndjson", ".json")
TABLES = {".parquet": Format.PARQUET, ".arrow": Format.ARROW}


@dataclass(frozen=True)
class Source:
    """One file of a corpus.

    Attributes:
        compression: ``gz``, ``zst``, or empty.
        size_bytes: on disk.
    """

    path: Path
    format: Format
    compression: str
    size_bytes: int


@dataclass(frozen=True)
class Found:
    """The files of a corpus, in the order in which they are read.

    Attributes:
        left_out: text files that lie in a folder beside files of documents, such as a README.
    """

    sources: list[Source]
    left_out: list[Path]

    @property
    def size_bytes(self) -> int:
        return sum(source.size_bytes for source in self.sources)

    def describe(self) -> str:
        """``2 jsonl.zst files, 1 text file (3.1 GB)``."""
        kinds = Counter(s.format.value + (f".{s.compression}" if s.compression else "") for s in self.sources)
        counts = [f"{count:,} {kind} file" + ("" if count == 1 else "s") for kind, count in kinds.items()]
        return f"{', '.join(counts)} ({in_bytes(self.size_bytes)})"


def in_bytes(count: int) -> str:
    """``3.1 GB``, with the largest decimal unit that leaves a whole part."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def find(inputs: Iterable[str], pattern: str = "*", format: Format | None = None, field: str = "text") -> Found:
    """The files of ``inputs`` and of its folders, sorted, that match ``pattern`` and are not hidden.

    Args:
        format: of every file; by default it is guessed from the name and, for .json, from the first line.
        field: of the text, in a line or a table.

    Raises:
        Refusal: an input does not exist, there is no file, or a folder holds several splits.
    """
    sources: list[Source] = []
    left_out: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = _of_folder(path, pattern, format, field)
            sources += found.sources
            left_out += found.left_out
        elif path.is_file():
            sources.append(_source(path, format, field))
        else:
            raise Refusal(f"there is no file or folder {name}")
    if not sources:
        raise Refusal(
            "the inputs hold no file", "Give text, .jsonl, .parquet or .arrow files, or folders that hold such files."
        )
    return Found(sources, left_out)


def _of_folder(folder: Path, pattern: str, format: Format | None, field: str) -> Found:
    if (folder / DATASET_SPLITS).is_file():
        splits = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir()))
        raise Refusal(f"{folder} holds several splits ({splits})", f"Give one of them, such as {folder}/train.")
    if (folder / DATASET_STATE).is_file():
        return Found(_of_dataset(folder), [])
    try:
        files = sorted(p for p in folder.rglob(pattern) if p.is_file() and not _hidden(p.relative_to(folder)))
    except (OSError, ValueError, NotImplementedError) as error:  # an unreadable folder, or no pattern
        raise Refusal(f"the files {pattern!r} of {folder} cannot be listed: {error}") from None
    sources = [_source(path, format, field) for path in files]
    if format is None and any(source.format is not Format.TEXT for source in sources):
        documents = [source for source in sources if source.format is not Format.TEXT]
        return Found(documents, [source.path for source in sources if source.format is Format.TEXT])
    return Found(sources, [])


def _of_dataset(folder: Path) -> list[Source]:
    """The files of a folder that ``datasets`` wrote, in the order of its rows."""
    state_file = folder / DATASET_STATE
    try:
        state = json.loads(state_file.read_text())
        names = [entry["filename"] for entry in state["_data_files"]]
        reordered = bool(state.get("_indices_files") or state.get("_indices_data_files"))
    except (OSError, ValueError, KeyError, TypeError):
        raise Refusal(f"{state_file} does not describe a dataset of Hugging Face's datasets") from None
    if reordered:
        raise Refusal(
            f"{folder} is a selection of rows of its files", "Call flatten_indices() and save_to_disk() again."
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise Refusal(f"{folder} lacks {missing[0]}, which its {DATASET_STATE} names", "Copy the whole folder.")
    return [_source(folder / name, Format.ARROW, "") for name in names]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _source(path: Path, format: Format | None, field: str) -> Source:
    compression = compression_of(path)
    suffix = Path(path.name.removesuffix(path.suffix)).suffix if compression else path.suffix
    if format is None:
        format = _guessed(path, suffix.lower(), compression, field)
    if compression and format in TABLES.values():
        raise Refusal(f"{path} is a compressed {format.value} file", f"Uncompress it: {COMPRESSIONS[compression]}.")
    return Source(path, format, compression, path.stat().st_size)


def _guessed(path: Path, suffix: str, compression: str, field: str) -> Format:
    if suffix in TABLES:
        return TABLES[suffix]
    if suffix == ".json":  # lines of documents in some corpora, one document of any shape elsewhere
        line = first_bytes(path, compression, PEEK_BYTES).lstrip().split(b"\n", 1)[0]
        return Format.JSONL if _is_document(line, field) else Format.TEXT
    return Format.JSONL if suffix in LINES else Format.TEXT


def _is_document(line: bytes, field: str) -> bool:
    try:
        return field in json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return len(line) >= PEEK_BYTES and line.startswith(b'{"')


def kinds(sources: Sequence[Source]) -> set[Format]:
    """The formats that ``sources`` have."""
    return {source.format for source in sources}
