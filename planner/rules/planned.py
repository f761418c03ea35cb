"""What the planner prices and no recipe trains: ``check`` and ``plan`` say so, and nothing is built or submitted."""

from __future__ import annotations

from enum import Enum

from slipway import configs
from slipway.configs import Dispatcher, Schedule, Spec
from slipway.configs.schema import CudaGraphScope
from slipway.configs.schema.pipeline_layout import predicts_after_layers
from slipway.planner.rules.registry import MCORE, Broken, Framework, Severity, rule

ONLY_PLANNED_SCHEDULES = (Schedule.gpipe, Schedule.zero_bubble)

# Facts that come with NeMo's configuration class and that the builder does not pass on.
FIXED_BY_CLASS = (
    "gated_linear_unit activation_func normalization position_embedding_type rope_scaling pad_vocab window_size "
    "rotary_base_local query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping post_layernorm qk_l2_norm "
    "softmax_type window_every hybrid_override_pattern mamba_num_heads mamba_head_dim mamba_state_dim "
    "mamba_num_groups moe_latent_size"
).split()


@rule(
    "planned-only",
    says="models without a recipe, nvfp4, multi-token prediction in a chunk of its own, "
    "the gpipe and zero_bubble schedules, levers that NeMo does not have (HybridEP, overlap of the experts' exchange, "
    "delayed weight gradients, graphs of attention or of a step, parameter gather under the optimizer), and changes of "
    "what NeMo's class of a model fixes, can be planned for but not trained",
    why="the recipes would train something else without a word",
    source="NeMo 2.7.3 recipes.precision, lightning.megatron_parallel, MegatronCommOverlapCallback; "
    + MCORE
    + "pipeline_parallel.schedules.get_forward_backward_func and combined_1f1b, transformer_config",
    severity=Severity.advice,
    only_in=Framework.nemo,
)
def planned_only(spec: Spec) -> Broken | None:
    """The first value of ``spec`` that no recipe trains: advice where it is planned, a refusal where it is built."""
    model = spec.model
    if not model.nemo_config:
        return _not_trained(f"model={model.name}", "no recipe builds it", "Choose a model that slipway list shows.")
    if spec.precision.gemm == "fp4":
        return _not_trained(
            f"precision={spec.precision.name}",
            "NeMo 2.7.3 with megatron-core 0.15.3 has no recipe for it",
            "Use precision=mxfp8 or bf16.",
        )
    if broken := _untrained_lever(spec):
        return broken
    if model.mtp_num_layers and spec.layout.pipeline_layout and not predicts_after_layers(spec.layout.pipeline_layout):
        return _not_trained(
            f"layout.pipeline_layout={spec.layout.pipeline_layout}",
            "NeMo 2.7.3 builds multi-token prediction from the last decoder layer of its chunk, which has none",
            "Put a t before the m.",
        )
    if spec.layout.schedule in ONLY_PLANNED_SCHEDULES:
        return _not_trained(
            f"layout.schedule={spec.layout.schedule.value}",
            "Megatron-Core runs 1F1B and interleaved 1F1B only",
            "Use layout.schedule=auto.",
        )
    return _fixed_by_class(spec)


def _untrained_lever(spec: Spec) -> Broken | None:
    """The first lever that NeMo 2.7.3 with megatron-core 0.15.3 does not have."""
    levers = spec.levers
    if spec.model.is_moe and spec.layout.dispatcher is Dispatcher.hybridep:
        return _not_trained(
            "layout.dispatcher=hybridep",
            "megatron-core 0.15.3 knows DeepEP only",
            "Use layout.dispatcher=auto, which is DeepEP where it runs.",
        )
    for name in ("expert_comm_overlap", "delay_wgrad"):
        if getattr(levers, name):
            return _not_trained(
                f"levers.{name}=true",
                "Megatron-Core asks the training step for the schedule of a model's parts, which NeMo's does not give",
                f"Use levers.{name}=false.",
            )
    if levers.overlap_param_gather_with_optimizer_step:
        return _not_trained(
            "levers.overlap_param_gather_with_optimizer_step=true",
            "NeMo 2.7.3 turns it off in its own recipes, because checkpoints fail with it",
            "Use levers.overlap_param_gather_with_optimizer_step=false.",
        )
    if levers.cuda_graph_scope is not CudaGraphScope.layer:
        return _not_trained(
            f"levers.cuda_graph_scope={levers.cuda_graph_scope.value}",
            "NeMo 2.7.3 captures layers only: its switch for a whole step is one that megatron-core 0.15.3 refuses",
            "Use levers.cuda_graph_scope=layer.",
        )
    return None


def _fixed_by_class(spec: Spec) -> Broken | None:
    published = configs.model(spec.model.name)
    for name in FIXED_BY_CLASS:
        given, fixed = getattr(spec.model, name), getattr(published, name)
        if given != fixed and not (name == "window_size" and given and fixed):  # another width of a window is built
            return _not_trained(
                f"model.{name}={_word(given)}",
                f"the recipe's NeMo class has {_word(fixed) or 'none'}",
                "Leave it out, or describe a model of your own in configs/model.",
            )
    return None


def _not_trained(what: str, why: str, fix: str) -> Broken:
    return Broken(f"{what} can be planned for but not trained: {why}", fix)


def _word(value: object) -> object:
    return value.value if isinstance(value, Enum) else value
