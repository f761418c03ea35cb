"""What NVIDIA's own recipes set for speed, by recipe, GPU and precision: the table that
``python -m slipway.recipes.nvidia_levers`` writes.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass

from slipway.configs.files import ROOT

TABLE = ROOT / "levers" / "nvidia.csv"
OUR_STACK = "NeMo"


@dataclass(frozen=True)
class Theirs:
    """One lever of NVIDIA's: a key of ours, its value as an override has it, and the file that sets it."""

    key: str
    value: str
    source: str

    @property
    def of_our_stack(self) -> bool:
        """Whether NeMo sets it, and not Megatron-Bridge, whose megatron-core is newer."""
        return self.source.startswith(OUR_STACK)


@functools.cache
def _table() -> list[dict[str, str]]:
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


@functools.cache
def nvidia_levers(recipe: str, gpu: str, precision: str) -> tuple[Theirs, ...]:
    """What NVIDIA sets for a recipe on a GPU in a precision; empty where it publishes nothing."""
    return tuple(
        Theirs(row["key"], row["value"], row["source"])
        for row in _table()
        if row["recipe"] == recipe and row["gpu"] in ("*", gpu) and row["precision"] in ("*", precision)
    )
