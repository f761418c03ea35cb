"""Refuse what the planner can price but the recipes cannot train.

If it were left out without a word, another model or another layout would be trained.
"""

from __future__ import annotations

from enum import Enum

from slipway import configs
from slipway.configs import Refusal, Schedule, Spec
from slipway.planner.rules.data_parallel import fsdp_resume

# Facts that come with NeMo's configuration class and that the builder does not pass on.
_FIXED_BY_CLASS = (
    "gated_linear_unit activation_func normalization position_embedding_type rope_scaling pad_vocab window_size "
    "qk_l2_norm softmax_type window_every hybrid_override_pattern "
    "mamba_num_heads mamba_head_dim mamba_state_dim mamba_num_groups moe_latent_size"
).split()


def refuse_what_is_only_planned(spec: Spec) -> None:
    """Check that every value of ``spec`` reaches the recipe.

    Raises:
        Refusal: the first value that does not.
    """
    if broken := fsdp_resume(spec):
        raise Refusal(broken.message, broken.fix)
    if spec.layout.flexible_pipeline:
        raise Refusal(
            "layout.flexible_pipeline can be planned for but not trained: NeMo 2.7.3 does not pass "
            "on Megatron-Core's pipeline layout",
            "Use layout.split_unevenly=true.",
        )
    if spec.layout.schedule in (Schedule.gpipe, Schedule.zero_bubble):
        raise Refusal(
            f"layout.schedule={spec.layout.schedule.value} can be planned for but not trained: "
            "Megatron-Core runs 1F1B and interleaved 1F1B only",
            "Use layout.schedule=auto.",
        )
    published = configs.model(spec.model.name)
    for name in _FIXED_BY_CLASS:
        given, fixed = getattr(spec.model, name), getattr(published, name)
        if given != fixed:
            raise Refusal(
                f"model.{name}={_word(given)} can be planned for but not trained: the "
                f"recipe's NeMo class has {_word(fixed) or 'none'}",
                "Leave it out, or describe a model of your own in configs/model.",
            )


def _word(value: object) -> object:
    return value.value if isinstance(value, Enum) else value
