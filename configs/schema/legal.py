"""What a value of the schema may be: closed sets as enums, ranges as annotations that stand in a field's type.

``tp: Size = 1`` reads as "a whole number, at least 1". :mod:`slipway.configs.convert` enforces the annotations where
data enter (files, overrides, stored records); an instance that code builds is not checked again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Protocol, runtime_checkable

LONGEST_FILE_NAME = 200  # bytes: file systems allow 255, and suffixes are added


class Choice(str, Enum):
    """A closed set of words. Each member is the string that YAML and JSON hold, so ``Fsdp.none == "none"``."""

    def __str__(self) -> str:
        return str.__str__(self)

    def __format__(self, format_spec: str) -> str:
        return str.__format__(self, format_spec)

    __hash__ = str.__hash__


@runtime_checkable
class Constraint(Protocol):
    """What a value must satisfy beyond its type."""

    def allows(self, value: Any) -> bool:
        """Whether the value, already of the field's type, is legal."""

    @property
    def words(self) -> str:
        """What is legal, as it completes the sentence "it must be ..."."""


@dataclass(frozen=True)
class Minimum:
    """A number with a lower bound, which is itself legal. NaN and infinity are not."""

    floor: float

    def allows(self, value: Any) -> bool:
        return math.isfinite(value) and value >= self.floor

    @property
    def words(self) -> str:
        return f"{self.floor:g} or more" if self.floor == 0 else f"at least {_words(self.floor)}"


@dataclass(frozen=True)
class Above:
    """A number with a lower bound, which is itself not legal."""

    bound: float

    def allows(self, value: Any) -> bool:
        return math.isfinite(value) and value > self.bound

    @property
    def words(self) -> str:
        return f"above {self.bound:g}"


def _words(number: float) -> str:
    return f"{number:,.0f}" if number == int(number) else f"{number:g}"


@dataclass(frozen=True)
class Between:
    """A number in a closed interval."""

    low: float
    high: float

    def allows(self, value: Any) -> bool:
        return self.low <= value <= self.high

    @property
    def words(self) -> str:
        return f"between {_words(self.low)} and {_words(self.high)}"


@dataclass(frozen=True)
class FolderName:
    """Text that can name one folder: printable, without a slash, neither empty nor ``.`` nor ``..``."""

    def allows(self, value: Any) -> bool:
        short = len(value.encode()) <= LONGEST_FILE_NAME
        return value not in ("", ".", "..") and "/" not in value and value.isprintable() and short

    @property
    def words(self) -> str:
        return f"the name of a folder: printable, without a slash, of at most {LONGEST_FILE_NAME} bytes"


Size = Annotated[int, Minimum(1)]
"""A whole number, at least 1."""

Count = Annotated[int, Minimum(0)]
"""A whole number, 0 or more."""

Positive = Annotated[float, Above(0)]
"""A finite number above 0."""

NonNegative = Annotated[float, Minimum(0)]
"""A finite number, 0 or more."""

Fraction = Annotated[float, Between(0, 1)]
"""A number between 0 and 1."""
