"""The pipeline's schedule, simulated with the stages' times: GPipe, 1F1B, interleaved 1F1B and zero bubble.

GPipe runs all forward passes and then all backward passes. Sources: GPipe arXiv:1811.06965; 1F1B and interleaving
arXiv:2104.04473, section 2.2; zero bubble (ZB-H1) arXiv:2401.10241.

Symbols:
    pp, vpp  pipeline stages, and model chunks on each
    m        micro-batches of a step
    F, B, W  forward pass; backward pass; weight gradients, which zero bubble delays
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
_INPUT_GRADIENT_SHARE = 0.5  # of a backward pass: one of the two products of each linear layer


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
    """ZB-H1: weight gradients are delayed until they fill the drain; memory stays that of 1F1B."""
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
    run = _Simulation(kind, forward, backward, num_micro_batches, send)
    todo = orders(kind, run.pp, run.vpp, num_micro_batches)
    tasks: list[Task] | None = [] if record else None
    remaining = sum(len(order) for order in todo)
    position = [0] * run.pp
    while remaining:
        done = [run.advance(stage, todo[stage], position[stage], tasks) for stage in range(run.pp)]
        if not any(done):
            raise ValueError(f"schedule deadlocks: pp={run.pp} vpp={run.vpp} micro-batches={num_micro_batches}")
        position = [before + count for before, count in zip(position, done, strict=True)]
        remaining -= sum(done)
    return Timeline(tasks or [], max(run.clock), run.busy)


class _Simulation:
    """Which passes have ended, and when; times in seconds from the step's start."""

    def __init__(
        self,
        kind: Kind,
        forward: Sequence[Sequence[float]],
        backward: Sequence[Sequence[float]],
        num_micro_batches: int,
        send: float,
    ) -> None:
        self.pp, self.vpp = len(forward), len(forward[0])
        self.last = self.pp * self.vpp - 1
        self.hop = send if self.pp > 1 else 0.0
        # zero bubble runs the two halves of a backward pass apart: the gradient of the input, and that of the weights
        share = _INPUT_GRADIENT_SHARE if kind is Kind.zero_bubble else 1.0
        self.seconds = {
            "F": forward,
            "B": [[share * s for s in chunks] for chunks in backward],
            "W": [[(1 - _INPUT_GRADIENT_SHARE) * s for s in chunks] for chunks in backward],
        }
        # by the place of a chunk in the model and by micro-batch; negative: not yet
        self.ended_forward = [[-1.0] * num_micro_batches for _ in range(self.last + 1)]
        self.ended_backward = [[-1.0] * num_micro_batches for _ in range(self.last + 1)]
        self.clock, self.busy = [0.0] * self.pp, [0.0] * self.pp

    def _earliest(self, phase: str, place: int, i: int) -> float:
        """When the input of a pass arrives; negative if the pass that it waits for has not run."""
        if phase == "W":
            return self.ended_backward[place][i]
        if phase == "F":
            if place == 0:
                return 0.0
            ended = self.ended_forward[place - 1][i]
        elif place == self.last:
            return self.ended_forward[place][i]
        else:
            ended = self.ended_backward[place + 1][i]
        return ended if ended < 0 else ended + self.hop

    def advance(self, stage: int, order: Order, position: int, tasks: list[Task] | None) -> int:
        """Run a stage's passes from ``position`` on until one has to wait for another stage; return how many ran."""
        now, start_position = self.clock[stage], position
        while position < len(order):
            phase, chunk, i = order[position]
            place = chunk * self.pp + stage
            arrival = self._earliest(phase, place, i)
            if arrival < 0:
                break
            start = max(now, arrival)
            seconds = self.seconds[phase][stage][chunk]
            now = start + seconds
            self.busy[stage] += seconds
            if phase == "F":
                self.ended_forward[place][i] = now
            elif phase == "B":
                self.ended_backward[place][i] = now
            if tasks is not None:
                tasks.append(Task(stage, chunk, i, phase, start, now))
            position += 1
        self.clock[stage] = now
        return position - start_position


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
        shown = -(-shown // pp) * pp  # an illegal remainder is priced as a whole group
    makespan = simulate(kind, forward, backward, shown, send, record=False).makespan
    total = makespan + (m - shown) * pace
    return total, max(1.0 - m * max(work) / total, 0.0) if total else 0.0  # rounding goes below


def lower_bound(
    forward: Sequence[Sequence[float]], backward: Sequence[Sequence[float]], m: int, kind: Kind | None = None
) -> float:
    """Seconds that no schedule can beat: the busiest stage's work, and the first micro-batch's way to it and back."""
    best = reach = 0.0
    for f, b in zip(forward, backward, strict=True):
        best = max(best, m * (sum(f) + sum(b)) + reach)
        # with zero bubble a stage may end its step with weight gradients, which no other stage waits for
        reach += f[0] if kind is Kind.zero_bubble else f[0] + b[0]
    return best
