"""The share of a run's time that trains: what saves, interruptions and restarts take, and how often to save.

Symbols (seconds):
    M   mean time between two interruptions of the run, which are independent of each other
    T   work between two saves
    d   time that a save stops training
    W   time after that until the checkpoint is complete; an interruption before falls back on the one before it
    R   time from an interruption to the first step after it
    L   T + d
    E(T) = M e^((R + W) / M) (e^(L / M) - 1): the expected time of T seconds of work (Daly 2006, doi:10.1016/
           j.future.2004.11.016, equation 13; the work of W seconds that is lost with an incomplete checkpoint counts
           as a part of the restart). Goodput is T / E(T).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from slipway.configs import Spec
from slipway.configs.reliability import default_interruptions
from slipway.planner.memory import GIB, workload_memory
from slipway.planner.rules import is_legal
from slipway.planner.workload import workload_of

if TYPE_CHECKING:
    import numpy as np

_STORAGE_GB_PER_S_PER_NODE = 1.0  # assumed, where a cluster states nothing
_SAVE_OVERHEAD_S = 2.0  # assumed: all ranks agree on what each of them writes
_HOST_LINK_EFFICIENCY = 0.85  # of copies to pinned memory, as in planner/time/pipeline.py
_SHORTEST_S = 30.0  # between two saves, of those that are looked at
_STEPS_OF_SEARCH = 80  # of the golden section: the interval is exact to a millionth
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_SPARES_CONFIDENCE = 0.99
TRIALS = 2000
_SEED = 0


@dataclass(frozen=True)
class Goodput:
    """What a run loses to saves and interruptions. Times in seconds; the symbols are those of the module."""

    mtbf_s: float
    save_s: float  # d
    write_s: float  # W
    restart_s: float  # R
    interval_s: float  # T of the recipe
    checkpoint_gib: float
    storage_gb_per_s: float
    spare_nodes: int  # that keep the run at its size, with a probability of 99 %

    def at(self, interval_s: float) -> float:
        """The expected goodput with ``interval_s`` seconds of work between two saves."""
        exponent = (interval_s + self.save_s) / self.mtbf_s
        again = (self.restart_s + self.write_s) / self.mtbf_s
        if exponent + again > 600:  # beyond the range of exp: such a run never ends
            return 0.0
        return interval_s / (self.mtbf_s * math.exp(again) * math.expm1(exponent))

    @property
    def value(self) -> float:
        """The expected goodput with the recipe's interval."""
        return self.at(self.interval_s)

    @property
    def young_s(self) -> float:
        """The best interval to first order: Young 1974, doi:10.1145/361147.361115."""
        return math.sqrt(2.0 * self.save_s * self.mtbf_s)

    @functools.cached_property
    def best_s(self) -> float:
        """The interval with the largest expected goodput; a save must end before the next one begins."""
        low = max(_SHORTEST_S, self.write_s)
        high = max(4.0 * self.young_s, 2.0 * low)
        for _ in range(_STEPS_OF_SEARCH):
            left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
            low, high = (low, right) if self.at(left) >= self.at(right) else (left, high)
        return (low + high) / 2

    def simulate(
        self, work_s: float, interval_s: float | None = None, *, spread: float = 0.0, trials: int = TRIALS
    ) -> np.ndarray:
        """Seconds that ``work_s`` seconds of steps take, in so many runs whose interruptions are drawn at random.

        Args:
            interval_s: of work between two saves; the recipe's if not given.
            spread: standard deviation of the logarithm of the true over the predicted step time.
        """
        import numpy as np

        random = np.random.default_rng(_SEED)
        interval = self.interval_s if interval_s is None else interval_s
        left = work_s * np.exp(spread * random.standard_normal(trials))  # work that no checkpoint holds
        elapsed, ready = np.zeros(trials), np.zeros(trials)  # ready: of the restart that comes first
        running = np.arange(trials)
        while len(running):
            drawn = random.exponential(self.mtbf_s, len(running))
            trained = drawn - ready[running]
            to_end = left[running] + np.floor(left[running] / interval) * self.save_s
            ended = trained >= to_end
            kept = np.floor(np.maximum(trained - self.write_s, 0.0) / (interval + self.save_s)) * interval
            elapsed[running] += np.where(ended, ready[running] + to_end, drawn)
            left[running] -= np.where(ended, left[running], np.minimum(kept, left[running]))
            ready[running] = self.restart_s
            running = running[~ended]
        return elapsed


def goodput(spec: Spec, step_time_s: float, checkpoint_gib: float | None = None) -> Goodput:
    """What a legal run loses to saves and interruptions, with what its cluster states of both.

    Args:
        step_time_s: seconds of one step.
        checkpoint_gib: of all its states, where the memory is known already.
    """
    cluster, run = spec.cluster, spec.run
    if checkpoint_gib is None:
        checkpoint_gib = workload_memory(workload_of(spec)).checkpoint_gib
    known = default_interruptions()
    mtbf_s = (cluster.mtbf_gpu_hours or known.mtbf_gpu_hours) * 3600 / spec.gpus
    storage = cluster.storage_gb_per_s or _STORAGE_GB_PER_S_PER_NODE * spec.num_nodes
    transfer_s = checkpoint_gib * GIB / (storage * 1e9)
    copy_s = checkpoint_gib * GIB / spec.gpus / (spec.gpu.host_link_gb_per_s * 1e9 * _HOST_LINK_EFFICIENCY)
    save_s = _SAVE_OVERHEAD_S + (copy_s if run.async_save else transfer_s)
    every = [60.0 * run.checkpoint_every_minutes, run.checkpoint_every_n_steps * step_time_s]
    return Goodput(
        mtbf_s=mtbf_s,
        save_s=save_s,
        write_s=transfer_s if run.async_save else 0.0,
        restart_s=60.0 * cluster.restart_minutes + transfer_s,
        interval_s=min((seconds for seconds in every if seconds), default=math.inf),
        checkpoint_gib=checkpoint_gib,
        storage_gb_per_s=storage,
        spare_nodes=_spares(3600 * cluster.repair_hours / mtbf_s * known.hardware_share, spec.num_nodes),
    )


WORTH_SAVING = 0.002  # of goodput: less does not justify another interval
_LONGEST_MINUTES = 30  # between two saves of a run that nobody told otherwise


def save_minutes(found: Goodput) -> int:
    """Whole minutes between two saves: the best interval, and at most half an hour."""
    return max(1, min(_LONGEST_MINUTES, math.floor(found.best_s / 60)))


def with_save_interval(spec: Spec, untouched: frozenset[str]) -> Spec:
    """``spec`` with saves as often as its goodput asks for, where nobody set that, it is legal, and it is worth it.

    Args:
        untouched: the keys that nobody set.
    """
    if "run.checkpoint_every_minutes" not in untouched or not is_legal(spec):
        return spec
    found = goodput(spec, math.inf)
    minutes = save_minutes(found)
    if found.at(60.0 * minutes) - found.value < WORTH_SAVING:
        return spec
    return replace(spec, run=replace(spec.run, checkpoint_every_minutes=minutes))


def _spares(broken: float, nodes: int) -> int:
    """Nodes that suffice with 99 % probability where ``broken`` are being repaired at a time, on average."""
    term = total = math.exp(-broken)
    count = 0
    while total < _SPARES_CONFIDENCE and count < nodes:
        count += 1
        term *= broken / count
        total += term
    return count
