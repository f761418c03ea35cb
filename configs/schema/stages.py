"""What a training run changes while it trains, as one line each: stages of the learning rate, of the batch, and of
constants of the loss.

Each line is read here into a frozen dataclass::

    cosine until 14.3T tokens to 2.2e-5     a stage of the learning rate
    1024 until 2.87T tokens                 a stage of the batch, in sequences
    3072 by 768 until 469B tokens           a batch that grows by 768 sequences at a time
    mtp_loss_scaling_factor 0.1 from 10T tokens

The lines are text in YAML, in overrides, in a run's record and in NeMo's exported recipe alike.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction as Exact
from typing import Annotated, Any

from slipway.configs.schema.legal import Choice

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
_AMOUNT = rf"({_NUMBER})\s*([KMBT]?)"
_POINT = rf"{_AMOUNT} (tokens|steps)"


class Unit(Choice):
    """What the length of a stage is counted in."""

    tokens = "tokens"
    steps = "steps"


class Shape(Choice):
    """How the learning rate goes from the end of the stage before to the end of this one.

    ``x`` runs from 0 to 1 over the stage: linear 1 - x; cosine (1 + cos(pi x)) / 2; one_minus_sqrt 1 - sqrt(x), the
    cooldown of arXiv:2405.18392. inverse_sqrt multiplies by sqrt(start / position), as Megatron-Core's
    OptimizerParamScheduler does; its stage must start after a warm-up.
    """

    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    one_minus_sqrt = "one_minus_sqrt"
    inverse_sqrt = "inverse_sqrt"


class Changed(Choice):
    """The constants of the loss that may change during a run: Megatron-Core reads them in every step."""

    mtp_loss_scaling_factor = "mtp_loss_scaling_factor"
    moe_router_bias_update_rate = "moe_router_bias_update_rate"


@dataclass(frozen=True)
class Point:
    """A position in a run."""

    at: int
    unit: Unit

    def __str__(self) -> str:
        return f"{short(self.at)} {self.unit}"


@dataclass(frozen=True)
class LrStage:
    """One stage of the learning rate; without ``lr`` it ends where it starts."""

    shape: Shape
    until: Point
    lr: float | None

    def __str__(self) -> str:
        return f"{self.shape} until {self.until}" + (f" to {self.lr:g}" if self.lr is not None else "")


@dataclass(frozen=True)
class BatchStage:
    """A global batch in sequences, which grows by ``increment`` up to the next stage's unless that is 0."""

    gbs: int
    increment: int
    until: Point


@dataclass(frozen=True)
class Change:
    """A constant of the loss, and its value from ``start`` on."""

    name: Changed
    value: float
    start: Point


def short(number: int) -> str:
    """A number of tokens or steps as papers print it: 14.3T, 252M, 8,000."""
    for suffix, unit in reversed(_SUFFIXES.items()):
        if suffix not in ("", "K") and number >= unit and number * 1000 % unit == 0:
            return f"{number / unit:g}{suffix}"
    return f"{number:,}"


@functools.lru_cache(maxsize=1024)
def amount(text: str) -> int:
    """A number of tokens or steps: 15T, 252M, 1.2e6 or 8000.

    Raises:
        ValueError: not a whole number above 0.
    """
    found = re.fullmatch(_AMOUNT, text.strip())
    whole = Exact(found[1]) * _SUFFIXES[found[2]] if found else Exact(0)
    if whole <= 0 or whole.denominator != 1:
        raise ValueError(text)
    return int(whole)


def _point(number: str, suffix: str, unit: str) -> Point:
    return Point(amount(number + suffix), Unit(unit))


def _match(form: str, text: str) -> re.Match[str]:
    if found := re.fullmatch(form, text.strip()):
        return found
    raise ValueError(text)


@functools.lru_cache(maxsize=1024)
def lr_stage(text: str) -> LrStage:
    """Read ``SHAPE until N tokens [to LR]``.

    Raises:
        ValueError: not in that form.
    """
    found = _match(rf"(\w+) until {_POINT}(?: (?:to|at) ({_NUMBER}))?", text)
    lr = None if found[5] is None else float(found[5])
    shape = Shape(found[1])
    if lr is None and shape not in (Shape.constant, Shape.inverse_sqrt):
        raise ValueError(text)
    return LrStage(shape, _point(*found.group(2, 3, 4)), lr)


@functools.lru_cache(maxsize=1024)
def batch_stage(text: str) -> BatchStage:
    """Read ``GBS [by INCREMENT] until N tokens``.

    Raises:
        ValueError: not in that form.
    """
    found = _match(rf"([0-9]+)(?: by ([0-9]+))? until {_POINT}", text)
    if not int(found[1]) or found[2] == "0":
        raise ValueError(text)
    return BatchStage(int(found[1]), int(found[2] or 0), _point(*found.group(3, 4, 5)))


@functools.lru_cache(maxsize=1024)
def change(text: str) -> Change:
    """Read ``NAME VALUE from N tokens``.

    Raises:
        ValueError: not in that form.
    """
    found = _match(rf"(\w+) ({_NUMBER}) from {_POINT}", text)
    return Change(Changed(found[1]), float(found[2]), _point(*found.group(3, 4, 5)))


@dataclass(frozen=True)
class _Lines:
    """Lines of one form whose positions grow, of each unit and of each name."""

    read: Callable[[str], Any]
    form: str

    def allows(self, value: Any) -> bool:
        try:
            lines = [self.read(line) for line in value]
        except ValueError:
            return False
        last: dict[Any, int] = {}
        for line in lines:
            point = getattr(line, "until", None) or line.start
            track = (point.unit, getattr(line, "name", None))
            if point.at <= last.get(track, 0):
                return False
            last[track] = point.at
        return True

    @property
    def words(self) -> str:
        return f"a list of lines, each {self.form}, each later than the one before it"


@dataclass(frozen=True)
class _Amount:
    """Empty, or a number of tokens."""

    def allows(self, value: Any) -> bool:
        try:
            return not value or amount(value) > 0
        except ValueError:
            return False

    @property
    def words(self) -> str:
        return "a number of tokens, such as 15T, 252M or 1.5e13"


Tokens = Annotated[str, _Amount()]
"""A number of tokens as papers print it; empty: not given."""

LrStages = Annotated[
    list[str],
    _Lines(
        lr_stage,
        f"'SHAPE until N tokens to LR' with N in tokens or steps and SHAPE one of {', '.join(Shape)} "
        "(constant and inverse_sqrt may leave LR out)",
    ),
]
"""Stages of the learning rate after the warm-up."""

BatchStages = Annotated[
    list[str],
    _Lines(batch_stage, "'GBS until N tokens' or 'GBS by INCREMENT until N tokens' with N in tokens or steps"),
]
"""Stages of the global batch before layout.gbs."""

Changes = Annotated[
    list[str],
    _Lines(change, f"'NAME VALUE from N tokens' with N in tokens or steps and NAME one of {', '.join(Changed)}"),
]
"""Constants of the loss that change."""


def interpolate(shape: Shape, start: float, end: float, x: int, length: int, begin: int) -> float:
    """The learning rate ``x`` of ``length`` into a stage that begins at ``begin`` (all in the stage's unit)."""
    if shape is Shape.inverse_sqrt:
        return max(end, start * math.sqrt(begin / (begin + x)))
    if x >= length or shape is Shape.constant:
        return end
    if shape is Shape.cosine:
        left = 0.5 * (1 + math.cos(math.pi * x / length))
    elif shape is Shape.linear:
        left = 1 - x / length
    else:
        left = 1 - math.sqrt(x / length)
    return (start - end) * left + end
