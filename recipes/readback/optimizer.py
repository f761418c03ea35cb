"""The optimizer of what trains, and its schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slipway.configs import Spec
from slipway.configs.schedule import has_length, stage_lines, warmup_line
from slipway.configs.schema import Optimizer
from slipway.configs.schema.optimizer import Algorithm, LrSchedule
from slipway.configs.schema.stages import lr_stage
from slipway.recipes.build.optimizer import MOMENTS
from slipway.recipes.readback.parts import Parts, choice, value
from slipway.recipes.runtime.batch import as_lines, batches_of_sampler

_SAME_NAME = ("lr", "weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "clip_grad")


def read_optimizer(parts: Parts, base: Spec, max_steps: int) -> Optimizer:
    """The optimizer of ``parts``.

    Args:
        max_steps: the steps of the run, which are the length of a schedule that has none of its own.
    """
    config, optim = parts.optim, base.optim
    changed: dict[str, Any] = {name: value(config, name) for name in _SAME_NAME}
    changed["optimizer"] = choice(Algorithm, value(config, "optimizer"))
    changed["precision_aware"] = bool(value(config, "use_precision_aware_optimizer"))
    if changed["precision_aware"]:
        types = {dtype: moments for moments, dtype in MOMENTS.items()}
        changed["moments"] = types.get(given := value(config, "exp_avg_dtype"), str(given))
    changed["batch_ramp"] = _ramp(parts.data)
    changed["changes"] = [line for each in parts.callbacks for line in value(each, "changes", [])]
    if (stages := value(parts.schedule, "stages")) is not None:
        changed |= _schedule(list(stages), str(value(parts.schedule, "warmup", "")), base, max_steps)
    return replace(optim, **changed)


def _ramp(data: Any) -> list[str]:
    sampler = value(data, "data_sampler")  # of the built module, which does not keep the argument
    if sampler is not None:
        return list(batches_of_sampler(sampler).ramp)
    return as_lines(value(data, "rampup_batch_size"), value(data, "seq_length"))


def _schedule(stages: list[str], warmup: str, base: Spec, max_steps: int) -> dict[str, Any]:
    """The fields of the schedule: those of ``base`` where they give these lines, else the lines themselves."""
    optim = base.optim
    changed: dict[str, Any] = {}
    if warmup != warmup_line(optim):
        amount, _, unit = warmup.partition(" ")
        changed["warmup_steps"] = int(amount) if unit == "steps" else 0
        changed["warmup_tokens"] = amount if unit == "tokens" else ""
    if stages == stage_lines(optim, max_steps):
        return changed
    if stages == stage_lines(optim, base.run.max_steps) and not has_length(optim):
        return changed | {"decay_steps": base.run.max_steps}
    rates = _rates(stages)
    return changed | {
        "schedule": LrSchedule.stages,
        "stages": stages,
        "decay_steps": 0,
        "decay_tokens": "",
        "min_lr": rates[-1] if rates else optim.min_lr,
    }


def _rates(stages: list[str]) -> list[float]:
    """The learning rates at which stages end; none where a line cannot be read, which the schema then refuses."""
    try:
        return [stage.lr for stage in map(lr_stage, stages) if stage.lr is not None]
    except ValueError:
        return []
