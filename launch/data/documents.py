"""The documents of text files: which files, and what each holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from slipway.configs import Refusal


def expand(inputs: Iterable[str], pattern: str = "*") -> list[Path]:
    """The files of ``inputs``, and those in its folders, sorted, that match ``pattern`` and are not hidden.

    Raises:
        Refusal: an input does not exist, or there is no file.
    """
    files: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files += sorted(p for p in path.rglob(pattern) if p.is_file() and not _hidden(p.relative_to(path)))
        elif path.is_file():
            files.append(path)
        else:
            raise Refusal(f"there is no file or folder {name}")
    if not files:
        raise Refusal("the inputs hold no file", "Give text files, .jsonl files with a text field, or folders of them.")
    return files


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def documents(path: Path) -> Iterator[str]:
    """The documents of one file: the ``text`` of each line of a .jsonl file, otherwise the whole file.

    Raises:
        Refusal: bytes that are not UTF-8, with file and offset, or a line that is not such JSON, with its number.
    """
    if path.suffix != ".jsonl":
        yield _decode(path.read_bytes(), path, 0)
        return
    offset = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            text = _decode(line, path, offset)
            offset += len(line)
            if not text.strip():
                continue
            try:
                yield json.loads(text)["text"]
            except (ValueError, KeyError, TypeError):
                raise Refusal(f"{path} line {number} is not a JSON object with a text field") from None


def _decode(data: bytes, path: Path, offset: int) -> str:
    """``data``, which starts at byte ``offset`` of ``path``, as text."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(
            f"{path} is not UTF-8 at byte {offset + error.start}",
            "Fix the file, leave it out, or pass --skip-bad to leave out all such files.",
        ) from None
