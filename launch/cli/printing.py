"""Print text, fields and tables on a terminal. All text is printed as given: there is no markup."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TextIO

PLAIN_WIDTH = 120  # columns of a table where the output is no terminal and COLUMNS is not set
LABEL_WIDTH = 9  # columns of the labels in front of check's and plan's lines: "layout   ", "memory   "
NARROWEST_COLUMN = 12  # columns of a table cell below which text is no longer readable
WORD_BREAKS = "/_.,=:-"  # marks after which a word that is too long is divided
LONGEST_WHOLE_WORD = 44  # columns: a word up to this length is divided only if there is no other way
GAP = "  "  # between two columns of a table

NO_BREAK_SPACE = "\u00a0"

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a log's escape sequences must not reach the terminal


class Style(Enum):
    """How a word is shown on a terminal (ANSI codes); elsewhere it is plain."""

    PLAIN = ""
    BOLD = "1"
    GOOD = "32"
    WARNING = "33"
    BAD = "31"
    DIM = "2"


@dataclass(frozen=True)
class Table:
    """Rows of plain text below a head.

    Args:
        head: the columns' titles.
        right: the indices of the columns that are aligned to the right, which are never wrapped.
    """

    head: Sequence[str]
    right: frozenset[int] = frozenset()
    rows: list[Sequence[str]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        self.rows.append(cells)

    def lines(self, width: int) -> list[str]:
        """The table in at most ``width`` columns, its widest text columns wrapped, if that is possible."""
        cells = [[_printable(cell, keep_newlines=True) for cell in row] for row in (self.head, *self.rows)]
        widths = self._widths(cells, width)
        printed = [line for row in cells for line in self._row(row, widths)]
        heading = len(self._row(cells[0], widths))
        rule = "─" * (sum(widths) + len(GAP) * (len(widths) - 1))
        return [*printed[:heading], rule, *printed[heading:]]

    def _widths(self, cells: list[list[str]], width: int) -> list[int]:
        widths = [max(len(line) for row in cells for line in row[i].split("\n")) for i in range(len(self.head))]
        words = [max((len(word) for row in cells for word in row[i].split()), default=0) for i in range(len(self.head))]
        whole = [max(NARROWEST_COLUMN, min(word, LONGEST_WHOLE_WORD)) for word in words]
        for least in (whole, [NARROWEST_COLUMN] * len(widths)):
            while sum(widths) + len(GAP) * (len(widths) - 1) > width:
                wrappable = [i for i, w in enumerate(widths) if i not in self.right and w > least[i]]
                if not wrappable:
                    break
                widths[max(wrappable, key=lambda i: widths[i])] -= 1
        return widths

    def _row(self, row: Sequence[str], widths: list[int]) -> list[str]:
        wrapped = [_wrap(cell, w) for cell, w in zip(row, widths, strict=True)]
        lines = []
        for number in range(max(map(len, wrapped))):
            parts = []
            for i, (cell, width) in enumerate(zip(wrapped, widths, strict=True)):
                text = cell[number] if number < len(cell) else ""
                parts.append(text.rjust(width) if i in self.right else text.ljust(width))
            lines.append(GAP.join(parts).rstrip())
        return lines


class Terminal:
    """Where a command prints: standard output, as wide as the terminal or the environment's COLUMNS says."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.colored = self.stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.wraps = self.stream.isatty() or os.environ.get("COLUMNS", "").isdigit()
        self.width = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns if self.wraps else PLAIN_WIDTH

    def line(self, text: str = "", style: Style = Style.PLAIN) -> None:
        """Print one line, wrapped where the output is a terminal."""
        for part in _wrap(_printable(text), self.width) if self.wraps else [_printable(text)]:
            self._write(self._styled(part, style))

    def parts(self, parts: Sequence[tuple[str, Style]]) -> None:
        """Print the parts of one text, each in its own style, with the text's own line breaks."""
        self._write("".join(self._styled(_printable(text, keep_newlines=True), style) for text, style in parts))

    def field(self, label: str, text: str, style: Style = Style.PLAIN) -> None:
        """Print a label, in ``style``, and its text, whose further lines are indented as far as the first."""
        indent = max(LABEL_WIDTH, len(label) + 1)
        body = _printable(text)
        lines = _wrap(body, max(self.width - indent, NARROWEST_COLUMN)) if self.wraps else [body]
        self._write(self._styled(label, style) + " " * (indent - len(label)) + lines[0])
        for more in lines[1:]:
            self._write(" " * indent + more)

    def table(self, table: Table) -> None:
        """Print a table, an empty line before and after it."""
        self._write("")
        for line in table.lines(self.width):
            self._write(line)
        self._write("")

    def _styled(self, text: str, style: Style) -> str:
        return f"\x1b[{style.value}m{text}\x1b[0m" if self.colored and style.value else text

    def _write(self, line: str) -> None:
        encoding = self.stream.encoding or "utf-8"
        print(line.replace(NO_BREAK_SPACE, " ").encode(encoding, "replace").decode(encoding), file=self.stream)


def _printable(text: str, keep_newlines: bool = False) -> str:
    """``text`` without control characters, on one line unless ``keep_newlines``."""
    lines = _CONTROL.sub("", text.expandtabs(4)).split("\n")
    return ("\n" if keep_newlines else " ").join(lines)


def _wrap(text: str, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` columns, broken at spaces, else within a word that is too long."""
    return [part for line in text.split("\n") for part in _wrap_line(line, max(width, 1))]


def _wrap_line(line: str, width: int) -> list[str]:
    lines = []
    while len(line) > width:
        indent = len(line) - len(line.lstrip(" "))
        cut = line.rfind(" ", indent, width + 1)
        if cut <= indent:
            cut = max(line.rfind(mark, indent, width) for mark in WORD_BREAKS) + 1
        if cut <= indent:
            cut = width
        lines.append(line[:cut].rstrip(" "))
        line = line[cut:].lstrip(" ")
    return [*lines, line]


def kept_together(text: str) -> str:
    """``text`` that a line break must not divide, such as a number and its unit."""
    return text.replace(" ", NO_BREAK_SPACE)


def plural(count: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def print_json(value: Any) -> None:
    """Print what a command found, for a program to read."""
    import json

    print(json.dumps(value, indent=1))


def note(text: str) -> None:
    """Print one line of progress on standard error, where it does not mix with what a program reads."""
    Terminal(sys.stderr).line(text)
    sys.stderr.flush()
