"""The named classes of failure, from ``configs/failures.yaml``."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from enum import Enum

from slipway.configs.files import ROOT, parse_yaml

TABLE = ROOT / "failures.yaml"


class Kind(Enum):
    """What a class says about the end of a run, from the most telling to the least."""

    cause = "cause"
    death = "death"
    error = "error"
    symptom = "symptom"
    ending = "ending"
    echo = "echo"


@dataclass(frozen=True)
class FailureClass:
    """One class of failures.

    Attributes:
        lasts: training goes on afterwards, so further steps do not show that it was harmless.
        patterns: what a line of the class looks like; one match is enough.
        source: the thread, file or manual that ``example`` is from.
    """

    name: str
    title: str
    kind: Kind
    patterns: tuple[re.Pattern[str], ...]
    meaning: str
    action: str
    example: str
    source: str
    lasts: bool = False

    def match(self, text: str) -> re.Match[str] | None:
        """The first pattern that a line matches."""
        return next((found for pattern in self.patterns if (found := pattern.search(text))), None)


@functools.cache
def failure_classes() -> dict[str, FailureClass]:
    """Every class by its name, in the order in which they are tried."""
    return {
        name: FailureClass(
            name=name,
            title=row["title"],
            kind=Kind(row["kind"]),
            patterns=tuple(re.compile(pattern) for pattern in row["match"]),
            meaning=row["meaning"],
            action=row["action"],
            example=row["example"],
            source=row["source"],
            lasts=row.get("lasts", False),
        )
        for name, row in parse_yaml(TABLE)["classes"].items()
    }


def classify(text: str) -> tuple[FailureClass, re.Match[str]] | None:
    """The class of a line and what matched; None where no class knows it."""
    for known in failure_classes().values():
        if found := known.match(text):
            return known, found
    return None
