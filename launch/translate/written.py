"""What a translation is, and what of a run every target leaves out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from slipway.configs import Refusal, Spec, Task
from slipway.configs.schedule import batches_of
from slipway.configs.schema.optimizer import LrSchedule
from slipway.configs.schema.stages import amount

_ONLY_OF_A_FAMILY = (
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "post_layernorm",
    "rotary_base_local",
    "moe_latent_size",
)
"""Facts of a model that only the code of its family has."""


class Lost(NamedTuple):
    """A value that the target cannot say."""

    key: str
    value: str
    why: str


@dataclass(frozen=True)
class Written:
    """A run in the words of another stack."""

    text: str
    lost: list[Lost] = field(default_factory=list)


class Schedule(NamedTuple):
    """A learning rate in steps."""

    style: LrSchedule
    warmup: int
    decay: int


def require_pretraining(spec: Spec, target: str) -> None:
    """Refuse a run that the writers have no words for.

    Raises:
        Refusal: it finetunes.
    """
    model = spec.model
    for name in _ONLY_OF_A_FAMILY:
        if value := getattr(model, name):
            said = str(value).lower() if isinstance(value, bool) else f"{value:g}"
            raise Refusal(
                f"{target} has no general word for model.{name}={said} of {model.name}", "Use its own recipe."
            )
    if spec.task != Task(source=spec.task.source):
        raise Refusal(f"task={spec.task.name} is not translated to {target}", "Translate a run that pretrains.")


def schedule_in_steps(spec: Spec, lost: list[Lost]) -> Schedule:
    """The learning rate by steps; ``lost`` gains what steps cannot say."""
    optim, batches = spec.optim, batches_of(spec)
    warmup = optim.warmup_steps or (batches.steps_for(amount(optim.warmup_tokens)) if optim.warmup_tokens else 0)
    decay = optim.decay_steps or (batches.steps_for(amount(optim.decay_tokens)) if optim.decay_tokens else 0)
    style = optim.schedule
    if style is LrSchedule.stages:
        lost.append(Lost("optim.stages", "; ".join(optim.stages), "one cosine to min_lr over the run stands in for it"))
        style = LrSchedule.cosine
    for key in ("changes", "batch_ramp"):
        if lines := getattr(optim, key):
            lost.append(Lost(f"optim.{key}", "; ".join(lines), "the target has no such stages"))
    return Schedule(style, warmup, decay or spec.run.max_steps)
