"""Rules of what saves activation memory: recompute, activation offload, and the CUDA graphs that exclude both."""

from __future__ import annotations

from slipway.configs import Recompute, Spec
from slipway.planner.flops import recomputes_norms
from slipway.planner.rules.context import UNFUSED_BACKENDS
from slipway.planner.rules.registry import MCORE, Broken, Phase, Severity, rule

SELECTIVE_MODULES = ("core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts")
"""The names that Megatron-Core's recompute_modules accepts."""

_DELAYED_SCALING = "delayed"
_NOT_WITH_DELAYED_SCALING = ("moe_act", "layernorm")


@rule(
    "recompute-modules",
    says="selective recompute names modules that the model has",
    why="each name is a code path in the layer",
    source=MCORE + "TransformerConfig.__post_init__",
)
def _recompute_modules(spec: Spec) -> Broken | None:
    model = spec.model
    if spec.layout.recompute is not Recompute.selective:
        return None
    for name in spec.layout.recompute_modules:
        if name not in SELECTIVE_MODULES:
            return Broken(f"layout.recompute_modules has {name!r}", "Use some of " + ", ".join(SELECTIVE_MODULES) + ".")
        if name == "mla_up_proj" and not model.is_mla:
            return Broken(f"recomputing mla_up_proj in {model.name}, which has no latent attention", "Leave it out.")
        if name == "moe_act" and not model.is_moe:
            return Broken(f"recomputing moe_act in the dense model {model.name}", "Leave it out.")
        if name in _NOT_WITH_DELAYED_SCALING and spec.precision.fp8_recipe == _DELAYED_SCALING:
            return Broken(
                f"recomputing {name} with precision={spec.precision.name}: delayed scaling would update its history "
                "twice",
                "Use precision=fp8_current.",
            )
    return None


@rule(
    "recompute-nothing",
    says="every recomputed module frees memory",
    why="fused attention keeps one number for each query and head in addition to its output, and a norm that is fused "
    "with its linear layer is not recomputed: Llama 3 70B takes 55.6 GB both with mlp and with mlp and core_attn, "
    "which is 1.1 % slower, and runs out of memory with core_attn and layernorm",
    source=MCORE + "attention.Attention._checkpointed_attention_forward, TransformerLayer.__init__; "
    "Megatron-Bridge, notes on activation recompute",
    severity=Severity.advice,
)
def _recompute_nothing(spec: Spec) -> Broken | None:
    layout, model = spec.layout, spec.model
    if layout.recompute is not Recompute.selective:
        return None
    useless = [] if layout.attention_backend in UNFUSED_BACKENDS else ["core_attn"]
    useless += [] if recomputes_norms(model) else ["layernorm"]
    useless += [] if model.moe_shared_expert_intermediate_size else ["shared_experts"]
    found = [name for name in layout.recompute_modules or ["core_attn"] if name in useless]
    if not found:
        return None
    return Broken(
        f"layout.recompute=selective of {' and '.join(found)} frees next to nothing in {model.name}",
        f"Name what is large: layout.recompute_modules=[{'moe_act' if model.is_moe else 'mlp'}].",
    )


@rule(
    "recompute-full",
    says="full recompute has a method, and a number of layers within a stage",
    why="either uniform groups of layers or the first layers of a stage are recomputed",
    source=MCORE + "TransformerConfig.__post_init__",
    phase=Phase.step,
)
def _recompute_full(spec: Spec) -> Broken | None:
    layout = spec.layout
    if layout.recompute is not Recompute.full:
        return None
    if layout.recompute_method not in ("", "uniform", "block"):
        return Broken(f"layout.recompute_method={layout.recompute_method} is unknown", "Use uniform or block.")
    if layout.recompute_num_layers < 0:
        return Broken(f"layout.recompute_num_layers={layout.recompute_num_layers}", "Use 1 or more.")
    return None


@rule(
    "mtp-recompute",
    says="full recompute with multi-token prediction recomputes one layer at a time",
    why="multi-token prediction layers are checkpointed one at a time",
    source=MCORE + "MultiTokenPredictionLayer._checkpointed_forward",
    phase=Phase.step,
)
def _mtp_recompute(spec: Spec) -> Broken | None:
    layout = spec.layout
    groups = layout.recompute_method != "block" and layout.recompute_num_layers > 1
    if spec.model.mtp_num_layers and layout.recompute is Recompute.full and groups:
        return Broken(
            f"layout.recompute_num_layers={layout.recompute_num_layers} with model.mtp_num_layers",
            "Use layout.recompute_num_layers=1.",
        )
    return None


@rule(
    "mtp-block",
    says="recompute by block does not cover multi-token prediction",
    why="its layers then keep all activations, on the stage that also holds the logits",
    source=MCORE + "MultiTokenPredictionLayer._checkpointed_forward",
    severity=Severity.advice,
)
def _mtp_block(spec: Spec) -> Broken | None:
    layout = spec.layout
    if spec.model.mtp_num_layers and layout.recompute is Recompute.full and layout.recompute_method == "block":
        return Broken(
            "layout.recompute_method=block does not recompute the layers of model.mtp_num_layers",
            "Use layout.recompute_method=uniform.",
        )
    return None


@rule(
    "offload",
    says="activation offload excludes pipeline parallelism and recompute",
    why="the offload hooks assume one forward and one backward pass in order",
    source=MCORE + "TransformerConfig.__post_init__",
)
def _offload(spec: Spec) -> Broken | None:
    layout, layers = spec.layout, spec.model.num_layers
    if not layout.cpu_offload_layers:
        return None
    if layout.pp > 1:
        return Broken("layout.cpu_offload_layers with layout.pp > 1", "Use layout.pp=1 or recompute.")
    if layout.recompute is not Recompute.none:
        return Broken("layout.cpu_offload_layers together with recompute", "Use one of them.")
    if not 0 < layout.cpu_offload_layers < layers:
        return Broken(
            f"layout.cpu_offload_layers={layout.cpu_offload_layers} of {layers} layers", f"Use at most {layers - 1}."
        )
    return None


@rule(
    "cuda-graphs",
    says="CUDA graphs exclude recompute, activation offload and expandable segments",
    why="a captured graph cannot replay a recomputation that Python drives, and its addresses must stay mapped",
    source=MCORE + "TransformerConfig.__post_init__ and cuda_graphs.CudaGraphManager.__init__; NVIDIA Megatron-Bridge "
    "issue 4587",
)
def _cuda_graphs(spec: Spec) -> Broken | None:
    layout = spec.layout
    if layout.cuda_graphs and layout.recompute is not Recompute.none:
        return Broken(f"layout.cuda_graphs=true with layout.recompute={layout.recompute.value}", "Use one of them.")
    if layout.cuda_graphs and layout.cpu_offload_layers:
        return Broken("layout.cuda_graphs=true with activation offload", "Use one of them.")
    if layout.cuda_graphs and "expandable_segments:True" in spec.cluster.env.get("PYTORCH_CUDA_ALLOC_CONF", ""):
        return Broken(
            "layout.cuda_graphs=true with expandable_segments:True in cluster.env.PYTORCH_CUDA_ALLOC_CONF",
            "Take it out of the cluster's file.",
        )
    return None
