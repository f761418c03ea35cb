"""Published speeds as points to fit to, in groups of one GPU under one software generation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slipway.configs import Spec
from slipway.planner.published.rows import interpret, stated_rate
from slipway.planner.published.table import read_rows

Group = tuple[str, str]  # GPU, software generation

# Words in a row's notes by which the collector of the tables marks a row that is not to be relied on.
UNRELIABLE = ("superseded", "inconsistent", "suspicious", "proxy")
# Megatron-Bridge's mixture-of-experts rows of this container drop tokens beyond a capacity: a different computation.
CONTAINER_THAT_DROPS_TOKENS = "container 25.09"


@dataclass(frozen=True)
class Point:
    """One measured speed."""

    spec: Spec
    tokens_per_s_per_gpu: float
    source: str
    software: str

    @property
    def model(self) -> str:
        return self.spec.model.name

    @property
    def moe(self) -> bool:
        return self.spec.model.is_moe


def load(path: Path) -> list[Point]:
    """The rows of a CSV that can be modelled, state a speed and are pretraining without dropped tokens."""
    rows = read_rows(path)
    points: list[Point] = []
    for row, read in zip(rows, interpret(rows), strict=True):
        if read.spec is None or read.spec.task.lora_rank:
            continue
        rate = stated_rate(row, read.spec)
        if not rate or any(word in row["notes"].lower() for word in UNRELIABLE):
            continue
        drops_tokens = read.spec.model.is_moe and CONTAINER_THAT_DROPS_TOKENS in row["source"]
        if not drops_tokens and "tokendrop" not in row["model"].lower():
            points.append(Point(read.spec, rate, row["source"], read.software))
    return points


def by_group(points: Sequence[Point]) -> dict[Group, list[Point]]:
    """The points of each GPU and software generation."""
    groups: dict[Group, list[Point]] = defaultdict(list)
    for point in points:
        groups[(point.spec.gpu.name, point.software)].append(point)
    return dict(groups)


def pool_of(gpu: str, software: str) -> str:
    """The pool whose fit centres this group's priors: an architecture under a Megatron-Bridge release, or none."""
    if not software.startswith("bridge_20"):
        return ""
    return f"blackwell/{software}" if gpu != "h100" else "hopper/bridge"


def pools(groups: Mapping[Group, list[Point]]) -> dict[str, list[Point]]:
    """The points of every pool that has any."""
    pooled: dict[str, list[Point]] = defaultdict(list)
    for (gpu, software), points in groups.items():
        if pool_of(gpu, software):
            pooled[pool_of(gpu, software)] += points
    # NeMo's rows of 2025 run the same kernels as Megatron-Bridge's on H100 and cover far more layouts.
    pooled["hopper/bridge"] = groups.get(("h100", "nemo_2025"), [])
    return {name: points for name, points in pooled.items() if points}
