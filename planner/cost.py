"""What a whole run takes: days, GPU-hours, dollars and energy, from the predicted time of its steps."""

from __future__ import annotations

from dataclasses import dataclass

from slipway.configs import Spec
from slipway.planner.course import Course, course

SECONDS_PER_HOUR = 3600.0
SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True)
class Cost:
    """The price of a run of ``seconds`` on ``gpus`` GPUs. None where nobody states a price or a power."""

    gpus: int
    seconds: float
    price_per_gpu_hour: float | None  # dollars
    gpu_power_w: float | None  # of one GPU at full load
    system_power_w: float | None  # of its share of a node or rack at full load

    @property
    def days(self) -> float:
        return self.seconds / SECONDS_PER_DAY

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.seconds / SECONDS_PER_HOUR

    @property
    def dollars(self) -> float | None:
        return None if self.price_per_gpu_hour is None else self.gpu_hours * self.price_per_gpu_hour

    @property
    def gpu_kwh(self) -> float | None:
        """Energy of the GPUs alone, at full load."""
        return None if self.gpu_power_w is None else self.gpu_hours * self.gpu_power_w / 1000

    @property
    def system_kwh(self) -> float | None:
        """Energy of the nodes or racks around them, at full load, without cooling."""
        return None if self.system_power_w is None else self.gpu_hours * self.system_power_w / 1000


def cost(spec: Spec, run: Course | None = None) -> Cost:
    """The cost of a legal run, in which nothing fails.

    Args:
        run: its length, where it is at hand.
    """
    return cost_of_seconds(spec, (run or course(spec)).seconds)


def cost_of_seconds(spec: Spec, seconds: float) -> Cost:
    """The cost of so many seconds on the GPUs of ``spec``."""
    return Cost(
        spec.gpus, seconds, spec.cluster.price or None, spec.gpu.power_w or None, spec.gpu.system_power_w or None
    )
