"""A whole run: its steps, its time over the batches of its ramp, and what changes at which tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

from slipway.configs import Spec
from slipway.configs.schedule import TrainingSchedule, schedule_of
from slipway.configs.schema import Unit
from slipway.configs.schema.stages import Changed, change
from slipway.planner.time.step import step_time

SAMPLES = 240  # of a picture's line


@dataclass(frozen=True)
class BatchPart:
    """The steps of one batch, and the predicted seconds of each."""

    gbs: int
    steps: int
    step_time_s: float


@dataclass(frozen=True)
class Course:
    """The length of a run."""

    steps: int
    tokens: int
    parts: tuple[BatchPart, ...]

    @property
    def seconds(self) -> float:
        """Predicted seconds of all steps; validation, checkpoints and restarts come on top."""
        return sum(part.steps * part.step_time_s for part in self.parts)


@dataclass(frozen=True)
class Moment:
    """The run at one position: what the step that starts there trains with."""

    step: int
    tokens: int
    lr: float
    gbs: int
    constants: dict[str, float]


def course(spec: Spec) -> Course:
    """The length of the run of a legal ``spec``."""
    schedule, steps = schedule_of(spec), spec.run.max_steps
    rows = schedule.batches.rows
    parts = []
    for row, end in zip(rows, [*(following.first_step for following in rows[1:]), steps], strict=True):
        count = min(end, steps) - row.first_step
        if count > 0:
            layout = replace(spec.layout, gbs=row.gbs)
            parts.append(BatchPart(row.gbs, count, step_time(replace(spec, layout=layout)).step_time_s))
    return Course(steps, schedule.batches.tokens_at(steps), tuple(parts))


def moment(spec: Spec, schedule: TrainingSchedule, step: int) -> Moment:
    """What step ``step`` trains with."""
    tokens = schedule.batches.tokens_at(step)
    first = {str(name): float(getattr(spec.model, name)) for name in {change(line).name for line in spec.optim.changes}}
    constants = first | {str(name): value for name, value in schedule.constants.at(step, tokens).items()}
    rate = schedule.learning_rate.at(step, tokens, spec.optim.lr)
    return Moment(step, tokens, rate, schedule.batches.of_tokens(tokens), dict(sorted(constants.items())))


def samples(spec: Spec, count: int = SAMPLES) -> list[Moment]:
    """The run at ``count`` positions, evenly over its steps and over its tokens, and at each of its turns."""
    schedule, steps = schedule_of(spec), spec.run.max_steps
    tokens = schedule.batches.tokens_at(steps)
    even = {(steps - 1) * i // (count - 1) for i in range(count)}
    even |= {schedule.batches.steps_for(tokens * i // count) for i in range(count)}
    chosen = even | {at for turn in _turns(spec, schedule) for at in (turn - 1, turn)}
    return [moment(spec, schedule, step) for step in sorted(chosen) if 0 <= step < steps]


def turns(spec: Spec) -> list[Moment]:
    """The run at its first and last step and wherever a stage, a batch or a constant begins."""
    schedule, steps = schedule_of(spec), spec.run.max_steps
    chosen = {0, *_turns(spec, schedule), steps - 1}
    return [moment(spec, schedule, step) for step in sorted(chosen) if step < steps]


def _turns(spec: Spec, schedule: TrainingSchedule) -> set[int]:
    points = [stage.until for stage in schedule.learning_rate.parsed]
    points += [schedule.learning_rate.warmup_point, *(change(line).start for line in spec.optim.changes)]
    steps = {
        point.at if point.unit is Unit.steps else schedule.batches.steps_for(point.at) for point in points if point.at
    }
    return steps | {row.first_step for row in schedule.batches.rows}


def changed_constants(spec: Spec) -> list[Changed]:
    """The constants of the loss that change during the run."""
    return sorted({change(line).name for line in spec.optim.changes})
