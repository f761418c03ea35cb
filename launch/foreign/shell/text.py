"""Text that remembers the lines of the file that it came from, and which variables it needs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Piece(NamedTuple):
    """A run of characters that begin on one line, or a value that only a shell could compute."""

    text: str
    line: int
    unknown: str = ""
    """What the value is computed from, where that is not known: a variable, or a command; ``text`` is then empty."""


Text = tuple[Piece, ...]


def plain(text: Iterable[Piece]) -> str:
    """The characters; a value that is not known is shown as the shell's ``${NAME}``."""
    return "".join(f"${{{piece.unknown}}}" if piece.unknown else piece.text for piece in text)


def unknown(text: Iterable[Piece]) -> str:
    """The first thing that ``text`` needs and that is not known; empty where it is complete."""
    return next((piece.unknown for piece in text if piece.unknown), "")


def line_of(text: Text) -> int:
    """The line on which ``text`` begins."""
    return next((piece.line for piece in text if piece.text.strip() or piece.unknown), text[0].line if text else 0)


def words(text: Iterable[Piece]) -> list[Text]:
    """``text`` divided at white space, each word with the line it stands on."""
    found: list[Text] = []
    open_word = False
    for piece in text:
        parts = [piece] if piece.unknown else _split(piece)
        for part in parts:
            if not part.unknown and part.text.isspace():
                open_word = False
            elif open_word:
                found[-1] = (*found[-1], part)
            else:
                found.append((part,))
                open_word = True
    return found


def _split(piece: Piece) -> list[Piece]:
    """The words and the white space of a piece, in turn."""
    parts, line = [], piece.line
    for text in re.findall(r"\s+|\S+", piece.text):
        parts.append(Piece(text, line))
        line += text.count("\n")
    return parts
