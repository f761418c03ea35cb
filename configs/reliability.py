"""How often published training runs were interrupted: configs/reliability/interruptions.csv."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass

from slipway.configs.files import ROOT

TABLE = ROOT / "reliability" / "interruptions.csv"
DEFAULT = "Llama 3 405B"
"""The run whose rate holds where a cluster states none: the largest one that is published in detail."""
HOURS_PER_DAY = 24


@dataclass(frozen=True)
class Interruptions:
    """The unexpected interruptions of one run or cluster. ``hardware_share`` is 0 where it is not published."""

    name: str
    gpu: str
    gpus: int
    days: float
    interruptions: int
    hardware_share: float
    source: str

    @property
    def mtbf_gpu_hours(self) -> float:
        """GPU-hours between two interruptions."""
        return self.gpus * self.days * HOURS_PER_DAY / self.interruptions


@functools.cache
def published_interruptions() -> tuple[Interruptions, ...]:
    """Every published run, in the order of the table."""
    with TABLE.open(newline="") as file:
        return tuple(
            Interruptions(
                row["name"],
                row["gpu"],
                int(row["gpus"]),
                float(row["days"]),
                int(row["interruptions"]),
                float(row["hardware_share"] or 0.0),
                row["source"],
            )
            for row in csv.DictReader(file)
        )


def default_interruptions() -> Interruptions:
    """The run whose rate holds where a cluster states none."""
    return next(each for each in published_interruptions() if each.name == DEFAULT)
