"""What a shell script is made of: words with their expansions, commands, conditions, loops and functions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Union

from slipway.launch.foreign.shell.text import Piece, Text, plain


@dataclass(frozen=True)
class Literal:
    """Characters as they are written."""

    piece: Piece
    quoted: bool = False


@dataclass(frozen=True)
class Variable:
    """``$NAME``, ``${NAME[index]}``, ``${#NAME}``, or ``${NAME:-operand}`` with its operator."""

    name: str
    line: int
    quoted: bool
    index: str = ""
    length: bool = False
    operator: str = ""
    operand: Word = ()


@dataclass(frozen=True)
class Computed:
    """``$(command)``, a command in backticks, or ``$((arithmetic))``."""

    text: Text
    line: int
    quoted: bool
    arithmetic: bool = False


Part = Union[Literal, Variable, Computed]
Word = tuple[Part, ...]


@dataclass(frozen=True)
class Assignment:
    """``NAME=word``, ``NAME+=word`` or ``NAME=(words)``."""

    name: str
    append: bool
    value: Word | list[Word]
    index: str = ""


@dataclass(frozen=True)
class Simple:
    """Assignments, a command's words, its here-documents (read after its line), and the files that it writes."""

    line: int
    assignments: list[Assignment] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    stdin: list[Word] = field(default_factory=list)
    writes: list[Word] = field(default_factory=list)


@dataclass(frozen=True)
class Arithmetic:
    """``((expression))`` as a command."""

    line: int
    text: Text


@dataclass(frozen=True)
class Condition:
    """``if`` with its branches, or ``while`` with one; ``otherwise`` is the ``else``."""

    line: int
    branches: list[tuple[list[Node], list[Node]]]
    otherwise: list[Node] = field(default_factory=list)
    loop: bool = False
    until: bool = False


@dataclass(frozen=True)
class For:
    """``for name in words``."""

    line: int
    name: str
    words: list[Word]
    body: list[Node]


@dataclass(frozen=True)
class Case:
    """``case word in``."""

    line: int
    word: Word
    arms: list[tuple[list[Word], list[Node]]]


@dataclass(frozen=True)
class Function:
    """A function's definition."""

    line: int
    name: str
    body: list[Node]


@dataclass(frozen=True)
class Group:
    """Commands in braces, in a subshell, or joined by pipes."""

    line: int
    body: list[Node]
    negated: bool = False


@dataclass(frozen=True)
class AndOr:
    """``left && right`` or ``left || right``."""

    line: int
    left: Node
    operator: str
    right: Node


Node = Union[Simple, Arithmetic, Condition, For, Case, Function, Group, AndOr]


def literal(word: Word) -> str:
    """The characters of a word as they are written, without its expansions."""
    return plain(part.piece for part in word if isinstance(part, Literal))
