"""Reading a CSV of published measurements, and the numbers in its cells."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from slipway.configs import Refusal

REQUIRED_COLUMNS = ("model", "gpu", "n_gpus", "gbs", "mbs", "seq_len", "tp", "pp")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, each a mapping of column to text.

    Raises:
        Refusal: no such file, not UTF-8, no rows, or a required column is missing.
    """
    if not path.is_file():
        raise Refusal(f"there is no file {path}")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = reader.fieldnames or []
    except UnicodeDecodeError as error:
        raise Refusal(f"{path} is not UTF-8 at byte {error.start}") from None
    missing = [column for column in REQUIRED_COLUMNS if column not in columns]
    if missing:
        raise Refusal(f"{path} has no column {missing[0]}", "Needed are " + ", ".join(REQUIRED_COLUMNS) + ".")
    if not rows:
        raise Refusal(f"{path} holds no rows")
    return rows


def whole_number(row: Mapping[str, str], column: str, default: int) -> int:
    """A count that a row states; ``default`` where the cell is empty or a dash.

    Raises:
        ValueError: the cell is not a whole number of at least 0.
    """
    text = (row.get(column) or "").strip()
    if not text or text == "-":
        return default
    value = float(text)
    if value != int(value) or value < 0:
        raise ValueError(f"{column}={text} is not a whole number")
    return int(value)


def size(row: Mapping[str, str], column: str) -> int:
    """A count that is at least 1, and 1 where the row does not state it."""
    return max(whole_number(row, column, 1), 1)


def in_notes(row: Mapping[str, str], key: str) -> int:
    """A size that a row's notes state as ``hidden=14336 nheads=64``; the last mention counts, 0 if there is none."""
    found = re.findall(rf"\bn?{key}=(\d+)", row.get("notes", ""))
    return int(found[-1]) if found else 0


def stated(row: Mapping[str, str], column: str) -> float:
    """A positive number that a row states; 0 if it does not."""
    try:
        return max(float(row.get(column) or 0.0), 0.0)
    except ValueError:
        return 0.0
