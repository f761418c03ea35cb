"""The pipeline as a schedule: GPipe (all forward, all backward), 1F1B, interleaved 1F1B and zero-bubble, simulated with real stage times.

Sources: GPipe arXiv:1811.06965; 1F1B and interleaving arXiv:2104.04473 section 2.2; zero bubble (ZB-H1) arXiv:2401.10241.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    gpipe = "gpipe"
    one_f_one_b = "1f1b"
    interleaved = "interleaved"
    zero_bubble = "zero_bubble"


@dataclass(frozen=True)
class Task:
    """One pass of one micro-batch through one chunk, as it ran: seconds from the step's start."""

    stage: int
    chunk: int
    micro_batch: int
    phase: str  # F, B, W (weight gradients, zero bubble only)
    start: float
    stop: float


@dataclass(frozen=True)
class Timeline:
    """A simulated schedule."""

    tasks: list[Task]
    makespan: float
    busy: list[float]  # seconds of work of each stage

    @property
    def bubble_fraction(self) -> float:
        """Share of the step in which the busiest stage waits."""
        return 1.0 - max(self.busy) / self.makespan if self.makespan else 0.0


Order = list[tuple[str, int, int]]  # (phase, chunk, micro-batch)


def _one_f_one_b(stage: int, pp: int, m: int) -> Order:
    warm = min(m, pp - stage - 1)
    order: Order = [("F", 0, i) for i in range(warm)]
    for i in range(m - warm):
        order += [("F", 0, warm + i), ("B", 0, i)]
    return order + [("B", 0, i) for i in range(m - warm, m)]


def _interleaved(stage: int, pp: int, vpp: int, m: int) -> Order:
    """Megatron-Core's order: micro-batches in groups of PP through each chunk in turn."""
    total = m * vpp
    warm = min(total, (pp - stage - 1) * 2 + (vpp - 1) * pp)

    def forward(k: int) -> tuple[str, int, int]:
        group, within = divmod(k, pp * vpp)
        return "F", within // pp, group * pp + within % pp

    def backward(k: int) -> tuple[str, int, int]:
        group, within = divmod(k, pp * vpp)
        return "B", vpp - 1 - within // pp, group * pp + within % pp

    order: Order = [forward(k) for k in range(warm)]
    for k in range(total - warm):
        order += [forward(warm + k), backward(k)]
    return order + [backward(k) for k in range(total - warm, total)]


def _zero_bubble(stage: int, pp: int, m: int) -> Order:
    """ZB-H1: weight gradients are put off until they fill the drain; memory stays that of 1F1B."""
    order: Order = []
    delayed = 0
    done_w = 0
    for phase, _, i in _one_f_one_b(stage, pp, m):
        order.append((phase, 0, i))
        if phase == "B":
            delayed += 1
            if delayed > stage and done_w < m:
                order.append(("W", 0, done_w))
                done_w += 1
    return order + [("W", 0, i) for i in range(done_w, m)]


def orders(kind: Kind, pp: int, vpp: int, m: int) -> list[Order]:
    """What each stage runs, in order."""
    if kind is Kind.gpipe:
        return [[("F", 0, i) for i in range(m)] + [("B", 0, i) for i in range(m)] for _ in range(pp)]
    if kind is Kind.interleaved:
        return [_interleaved(s, pp, vpp, m) for s in range(pp)]
    if kind is Kind.zero_bubble:
        return [_zero_bubble(s, pp, m) for s in range(pp)]
    return [_one_f_one_b(s, pp, m) for s in range(pp)]


def simulate(
    kind: Kind,
    forward: Sequence[Sequence[float]],
    backward: Sequence[Sequence[float]],
    num_micro_batches: int,
    send: float = 0.0,
) -> Timeline:
    """Run the schedule.

    Args:
        forward, backward: seconds of [stage][chunk]; with zero bubble half of the backward is the weight gradient.
        send: seconds from a stage's end of a pass to its neighbour's earliest start.
    """
    pp, vpp = len(forward), len(forward[0])
    todo = orders(kind, pp, vpp, num_micro_batches)
    done: dict[tuple[str, int, int, int], float] = {}
    clock = [0.0] * pp
    busy = [0.0] * pp
    at = [0] * pp
    tasks: list[Task] = []
    split = kind is Kind.zero_bubble

    def ready(phase: str, stage: int, chunk: int, i: int) -> float | None:
        if phase == "W":
            return done.get(("B", stage, chunk, i))
        if phase == "F":
            if stage == 0 and chunk == 0:
                return 0.0
            source = ("F", stage - 1, chunk, i) if stage else ("F", pp - 1, chunk - 1, i)
        elif stage == pp - 1 and chunk == vpp - 1:
            return done.get(("F", stage, chunk, i))
        else:
            source = ("B", stage + 1, chunk, i) if stage < pp - 1 else ("B", 0, chunk + 1, i)
        when = done.get(source)
        return None if when is None else when + (send if pp > 1 else 0.0)

    remaining = sum(len(o) for o in todo)
    while remaining:
        moved = False
        for stage in range(pp):
            while at[stage] < len(todo[stage]):
                phase, chunk, i = todo[stage][at[stage]]
                when = ready(phase, stage, chunk, i)
                if when is None:
                    break
                length = forward[stage][chunk] if phase == "F" else backward[stage][chunk] * (0.5 if split else 1.0)
                start = max(clock[stage], when)
                clock[stage] = start + length
                busy[stage] += length
                done[(phase, stage, chunk, i)] = clock[stage]
                tasks.append(Task(stage, chunk, i, phase, start, clock[stage]))
                at[stage] += 1
                remaining -= 1
                moved = True
        if not moved:
            raise ValueError(f"schedule deadlocks: pp={pp} vpp={vpp} micro-batches={num_micro_batches}")
    return Timeline(tasks, max(clock), busy)


def pipeline_time(
    forward: Sequence[Sequence[float]], backward: Sequence[Sequence[float]], m: int, send: float
) -> tuple[float, float]:
    """Seconds of a step's pipeline under Megatron's schedule, and the share in which the busiest stage waits.

    Beyond a few rounds the schedule is periodic, so long steps are simulated for a while and extended at the busiest
    stage's pace.
    """
    pp, vpp = len(forward), len(forward[0])
    work = [sum(f) + sum(b) for f, b in zip(forward, backward, strict=True)]
    if pp == 1:
        return m * work[0], 0.0
    kind = Kind.interleaved if vpp > 1 else Kind.one_f_one_b
    shown = min(m, (3 * pp) if m % pp == 0 or vpp > 1 else 3 * pp + m % pp)
    if vpp > 1 and shown % pp:
        shown = -(-shown // pp) * pp  # an illegal remainder is costed as a whole group
    makespan = simulate(kind, forward, backward, shown, send).makespan
    total = makespan + (m - shown) * max(work)
    return total, 1.0 - m * max(work) / total if total else 0.0


def lower_bound(forward: Sequence[Sequence[float]], backward: Sequence[Sequence[float]], m: int) -> float:
    """A time that no schedule of these stages can beat: the busiest stage's work, and the first micro-batch's way to it and back."""
    pp = len(forward)
    best = 0.0
    for stage in range(pp):
        reach = sum(forward[s][0] for s in range(stage)) + sum(backward[s][0] for s in range(stage))
        best = max(best, m * (sum(forward[stage]) + sum(backward[stage])) + reach)
    return best
