"""The pipeline as a schedule: GPipe (all forward, all backward), 1F1B, interleaved 1F1B and zero-bubble, simulated with real stage times.

Sources: GPipe arXiv:1811.06965; 1F1B and interleaving arXiv:2104.04473 section 2.2; zero bubble (ZB-H1) arXiv:2401.10241.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from slipway.configs import Layout, Schedule


class Kind(Enum):
    """A schedule that is simulated."""

    gpipe = "gpipe"
    one_f_one_b = "1f1b"
    interleaved = "interleaved"
    zero_bubble = "zero_bubble"


def kind_of(layout: Layout) -> Kind:
    """The schedule that ``layout.schedule`` chooses; ``auto`` is Megatron-Core's own choice."""
    if layout.schedule is Schedule.auto:
        return Kind.interleaved if layout.vpp > 1 else Kind.one_f_one_b
    return Kind(layout.schedule.value)


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
    *,
    record: bool = True,
) -> Timeline:
    """Run the schedule.

    Args:
        forward, backward: seconds of [stage][chunk]; with zero bubble half of the backward is the weight gradient.
        send: seconds from a stage's end of a pass to its neighbour's earliest start.
        record: keep every task; without, only the makespan and the busy times.
    """
    pp, vpp, m = len(forward), len(forward[0]), num_micro_batches
    todo = orders(kind, pp, vpp, m)
    last = pp * vpp - 1
    hop = send if pp > 1 else 0.0
    split = kind is Kind.zero_bubble
    # when each pass ended, by position of its chunk in the model; negative: not yet
    ended_f = [[-1.0] * m for _ in range(last + 1)]
    ended_b = [[-1.0] * m for _ in range(last + 1)]
    clock, busy, at = [0.0] * pp, [0.0] * pp, [0] * pp
    tasks: list[Task] = []
    remaining = sum(len(o) for o in todo)
    while remaining:
        before = remaining
        for stage in range(pp):
            order, position, now = todo[stage], at[stage], clock[stage]
            while position < len(order):
                phase, chunk, i = order[position]
                place = chunk * pp + stage
                if phase == "F":
                    when = 0.0 if place == 0 else ended_f[place - 1][i] + hop
                    known = place == 0 or ended_f[place - 1][i] >= 0
                    length = forward[stage][chunk]
                elif phase == "B":
                    source = ended_f[place][i] if place == last else ended_b[place + 1][i]
                    known = source >= 0
                    when = source if place == last else source + hop
                    length = backward[stage][chunk] * (0.5 if split else 1.0)
                else:
                    known, when, length = ended_b[place][i] >= 0, ended_b[place][i], backward[stage][chunk] * 0.5
                if not known:
                    break
                start = now if now > when else when
                now = start + length
                busy[stage] += length
                if phase == "F":
                    ended_f[place][i] = now
                elif phase == "B":
                    ended_b[place][i] = now
                if record:
                    tasks.append(Task(stage, chunk, i, phase, start, now))
                position += 1
                remaining -= 1
            at[stage], clock[stage] = position, now
        if remaining == before:
            raise ValueError(f"schedule deadlocks: pp={pp} vpp={vpp} micro-batches={m}")
    return Timeline(tasks, max(clock), busy)


def pipeline_time(
    forward: Sequence[Sequence[float]],
    backward: Sequence[Sequence[float]],
    m: int,
    send: float,
    kind: Kind | None = None,
) -> tuple[float, float]:
    """Seconds of a step's pipeline, and the share in which the busiest stage waits. By default of Megatron's schedule.

    Beyond a few rounds the schedule is periodic, so long steps are simulated for a while and extended at the busiest
    stage's pace.
    """
    pp, vpp = len(forward), len(forward[0])
    work = [sum(f) + sum(b) for f, b in zip(forward, backward, strict=True)]
    if pp == 1:
        return m * work[0], 0.0
    kind = kind or (Kind.interleaved if vpp > 1 else Kind.one_f_one_b)
    pace = max(work)
    if kind is Kind.gpipe:  # all forward passes, then all backward passes: each phase has its own slowest stage
        pace = max(f[0] for f in forward) + max(b[0] for b in backward)
    shown = min(m, 2 * pp + (0 if vpp > 1 else m % pp))
    if vpp > 1 and shown % pp:
        shown = -(-shown // pp) * pp  # an illegal remainder is costed as a whole group
    makespan = simulate(kind, forward, backward, shown, send, record=False).makespan
    total = makespan + (m - shown) * pace
    return total, max(1.0 - m * max(work) / total, 0.0) if total else 0.0  # rounding goes below


def lower_bound(
    forward: Sequence[Sequence[float]], backward: Sequence[Sequence[float]], m: int, kind: Kind | None = None
) -> float:
    """A time that no schedule of these stages can beat: the busiest stage's work, and the first micro-batch's way to it and back."""
    best = reach = 0.0
    for f, b in zip(forward, backward, strict=True):
        best = max(best, m * (sum(f) + sum(b)) + reach)
        # with zero bubble a stage may end its step with weight gradients, which no other stage waits for
        reach += f[0] if kind is Kind.zero_bubble else f[0] + b[0]
    return best
