"""What a run does over its tokens: its learning rate, its batch, and the constants of its loss, from the Spec's lines.

The planner counts a run's steps with this module, ``slipway show --schedule`` draws it, and the built schedulers ask it
in every step, so that all three are one computation. A position in a run is a number of steps done and the tokens that
they took.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from slipway.configs.schema import Model, Optimizer, Spec
from slipway.configs.schema.optimizer import LrSchedule
from slipway.configs.schema.stages import (
    BatchStage,
    Change,
    Changed,
    LrStage,
    Point,
    Unit,
    amount,
    batch_stage,
    change,
    interpolate,
    lr_stage,
)


@dataclass(frozen=True)
class BatchRow:
    """A batch in sequences, and the position from which it is used."""

    first_step: int
    first_tokens: int
    gbs: int


@dataclass(frozen=True)
class Batches:
    """The global batch over a run: ``gbs`` sequences after the stages of ``ramp``."""

    ramp: tuple[str, ...]
    gbs: int
    seq_length: int

    @functools.cached_property
    def rows(self) -> tuple[BatchRow, ...]:
        """Every batch with the position of its first step."""
        rows: list[BatchRow] = []
        step = tokens = 0
        for gbs, until, unit in self._pieces():
            each = gbs * self.seq_length
            missing = -((tokens - until) // each) if unit is Unit.tokens else until - step
            if missing > 0:
                rows.append(BatchRow(step, tokens, gbs))
                step, tokens = step + int(missing), tokens + int(missing) * each
        return (*rows, BatchRow(step, tokens, self.gbs))

    def _pieces(self) -> list[tuple[int, Fraction, Unit]]:
        """Each batch before the last, and where it ends. A batch that grows spends equal parts on each of its sizes."""
        stages = [batch_stage(line) for line in self.ramp]
        pieces: list[tuple[int, Fraction, Unit]] = []
        for stage, following in zip(stages, _followers(stages, self.gbs), strict=True):
            begin = next((int(until) for _, until, unit in reversed(pieces) if unit is stage.until.unit), 0)
            parts = _parts(stage, following)
            for part in range(parts):
                end = begin + Fraction((part + 1) * (stage.until.at - begin), parts)
                pieces.append((stage.gbs + part * stage.increment, end, stage.until.unit))
        return pieces

    def of_tokens(self, tokens: int) -> int:
        """The batch of the step that starts after ``tokens``, in sequences."""
        return self.rows[bisect.bisect_right(self._starts, tokens) - 1].gbs

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [row.first_tokens for row in self.rows]

    @functools.cached_property
    def _first_steps(self) -> list[int]:
        return [row.first_step for row in self.rows]

    def of_samples(self, samples: int) -> int:
        """The batch of the step that starts after so many sequences."""
        return self.of_tokens(samples * self.seq_length)

    def tokens_at(self, step: int) -> int:
        """The tokens that ``step`` steps take."""
        row = self.rows[bisect.bisect_right(self._first_steps, step) - 1]
        return row.first_tokens + (step - row.first_step) * row.gbs * self.seq_length

    def tokens_of_steps(self, steps: Iterable[int]) -> list[int]:
        """The tokens of each of these steps, counted from 0."""
        return [self.of_tokens(self.tokens_at(int(step))) * self.seq_length for step in steps]

    def steps_for(self, tokens: int) -> int:
        """The steps that take at least ``tokens``."""
        row = self.rows[max(0, bisect.bisect_left(self._starts, tokens) - 1)]
        return row.first_step - (row.first_tokens - tokens) // (row.gbs * self.seq_length)

    @functools.cached_property
    def distinct(self) -> tuple[int, ...]:
        """Every batch that is used, once, from the smallest."""
        return tuple(sorted(set(self.sizes)))

    @property
    def sizes(self) -> list[int]:
        """Every batch that is used, in order."""
        return [row.gbs for row in self.rows]


def _followers(stages: list[BatchStage], gbs: int) -> list[int]:
    """For each stage the batch after it."""
    return [*(stage.gbs for stage in stages), gbs][1:]


def _parts(stage: BatchStage, following: int) -> int:
    return max(1, (following - stage.gbs) // stage.increment) if stage.increment else 1


@dataclass(frozen=True)
class LearningRate:
    """The learning rate over a run.

    Attributes:
        warmup: where the linear warm-up from 0 reaches the peak, as ``8000 steps`` or ``375M tokens``; empty: none.
        stages: the lines of what follows.
        batches: what a step is in tokens, for stages that follow one in the other unit.
    """

    warmup: str
    stages: tuple[str, ...]
    batches: Batches

    @functools.cached_property
    def parsed(self) -> tuple[LrStage, ...]:
        """The stages."""
        return tuple(lr_stage(line) for line in self.stages)

    @functools.cached_property
    def warmup_point(self) -> Point:
        """Where the warm-up ends."""
        number, _, unit = self.warmup.rpartition(" ")
        return Point(amount(number), Unit(unit)) if number else Point(0, Unit.steps)

    def at(self, step: int, tokens: int, peak: float) -> float:
        """The learning rate of the step that starts at this position.

        The warm-up gives the first step one step's share of the peak, not 0, and the step at its end the peak.
        """
        position = {Unit.steps: step, Unit.tokens: tokens}
        end = self.warmup_point
        if position[end.unit] < end.at:
            first = 1 if end.unit is Unit.steps else self.batches.rows[0].gbs * self.batches.seq_length
            return peak * ((position[end.unit] + first) / (end.at + first))
        rate = peak
        for stage in self.parsed:
            begin, until = self._convert(end, stage.until.unit), stage.until.at
            goal = rate if stage.lr is None else stage.lr
            if stage.shape == "inverse_sqrt":
                goal = stage.lr or 0.0
            here = min(position[stage.until.unit], until)
            value = interpolate(stage.shape, rate, goal, max(here - begin, 0), until - begin, begin)
            if position[stage.until.unit] < until:
                return value
            rate, end = value, stage.until
        return rate

    def _convert(self, point: Point, unit: Unit) -> int:
        if point.unit is unit:
            return point.at
        return self.batches.steps_for(point.at) if unit is Unit.steps else self.batches.tokens_at(point.at)

    @property
    def steps(self) -> int:
        """The steps until the end of the last stage."""
        return self._convert(self.parsed[-1].until if self.parsed else self.warmup_point, Unit.steps)


@dataclass(frozen=True)
class LossConstants:
    """The constants of the loss that change over a run."""

    changes: tuple[str, ...]

    @functools.cached_property
    def parsed(self) -> tuple[Change, ...]:
        """The changes."""
        return tuple(change(line) for line in self.changes)

    def at(self, step: int, tokens: int) -> dict[Changed, float]:
        """The constants whose first change has come, with their values at this position."""
        position = {Unit.steps: step, Unit.tokens: tokens}
        return {line.name: line.value for line in self.parsed if position[line.start.unit] >= line.start.at}


@dataclass(frozen=True)
class TrainingSchedule:
    """What a run does over its tokens."""

    batches: Batches
    learning_rate: LearningRate
    constants: LossConstants


def batches_of(spec: Spec) -> Batches:
    """The batch over the run."""
    return _batches(tuple(spec.optim.batch_ramp), spec.layout.gbs, spec.seq_length)


@functools.lru_cache(maxsize=256)
def _batches(ramp: tuple[str, ...], gbs: int, seq_length: int) -> Batches:
    return Batches(ramp, gbs, seq_length)


def schedule_of(spec: Spec) -> TrainingSchedule:
    """What the run of ``spec`` does over its tokens."""
    batches = batches_of(spec)
    lines = tuple(stage_lines(spec.optim, spec.run.max_steps))
    rate = LearningRate(warmup_line(spec.optim), lines, batches)
    return TrainingSchedule(batches, rate, LossConstants(tuple(spec.optim.changes)))


def warmup_line(optim: Optimizer) -> str:
    """The end of the warm-up: ``8000 steps``, ``375M tokens``, or empty."""
    if optim.warmup_tokens:
        return f"{amount(optim.warmup_tokens)} tokens"
    return f"{optim.warmup_steps} steps" if optim.warmup_steps else ""


def stage_lines(optim: Optimizer, max_steps: int) -> list[str]:
    """The lines of the stages after the warm-up: those of optim.stages, or those that optim.schedule stands for.

    Args:
        max_steps: the schedule's length where ``optim`` gives none.
    """
    if optim.schedule is LrSchedule.stages:
        return list(optim.stages)
    unit = "tokens" if optim.decay_tokens else "steps"
    end = amount(optim.decay_tokens) if optim.decay_tokens else optim.decay_steps or max_steps
    least = f"to {optim.min_lr!r}"
    if optim.schedule is LrSchedule.constant:
        return [f"constant until {end} {unit}"]
    if optim.schedule is LrSchedule.wsd:
        stable = round(end * (1 - optim.wsd_decay_fraction))
        return [f"constant until {stable} {unit}", f"{optim.wsd_decay} until {end} {unit} {least}"]
    return [f"{optim.schedule} until {end} {unit} {least}"]


def has_length(optim: Optimizer) -> bool:
    """Whether the schedule ends by itself, whatever the number of the run's steps."""
    return bool(optim.decay_tokens or optim.decay_steps or optim.schedule is LrSchedule.stages)


def batch_ramp_error(spec: Spec) -> tuple[str, str] | None:
    """What is wrong with the ramp of the batch itself, whatever the layout, and how to fix it."""
    stages = [batch_stage(line) for line in spec.optim.batch_ramp]
    for stage, following in zip(stages, _followers(stages, spec.layout.gbs), strict=True):
        if stage.gbs >= following:
            return (
                f"optim.batch_ramp goes from {stage.gbs} sequences to {following}, and a ramp grows up to layout.gbs",
                "Give smaller batches, a larger layout.gbs, or optim.batch_ramp=[].",
            )
        if stage.increment and (following - stage.gbs) % stage.increment:
            return (
                f"optim.batch_ramp goes from {stage.gbs} to {following} sequences by {stage.increment}, which does not "
                f"divide the {following - stage.gbs} between them",
                "Use an increment that does.",
            )
    return None


def has_constant(model: Model, name: Changed) -> bool:
    """Whether the model has the part that a constant of the loss belongs to."""
    return (
        bool(model.mtp_num_layers) if name is Changed.mtp_loss_scaling_factor else model.moe_router_enable_expert_bias
    )


def changes_error(spec: Spec) -> tuple[str, str] | None:
    """The first change of a constant that the model does not have, and how to fix it."""
    for line in spec.optim.changes:
        if not has_constant(spec.model, name := change(line).name):
            part = "multi-token prediction" if name is Changed.mtp_loss_scaling_factor else "bias of its routers"
            return f"optim.changes has {line!r}, and {spec.model.name} has no {part}", "Leave that line out."
    return None
