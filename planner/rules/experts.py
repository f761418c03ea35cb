"""Rules of mixture-of-experts models: expert parallelism, token dispatch and capacity."""

from __future__ import annotations

from slipway.configs import Dispatcher, Spec
from slipway.configs.schema import BLACKWELL, CudaGraphScope
from slipway.planner.rules.registry import MCORE, Broken, Framework, Phase, Severity, divides, rule

_MOST_ALLGATHER_RANKS = (
    8  # expert ranks up to which gathering every token costs no more than routing it (Megatron-LM moe/README)
)
_SAFE_CAPACITY = 2.0  # times an even share; the load of a trained router stays below it (arXiv:2101.03961, section 2.2)


@rule(
    "ep-tp-needs-sp",
    says="expert and tensor parallelism together need sequence parallelism",
    why="without it, every tensor rank would dispatch the same tokens; this version raises a NameError instead of "
    "its warning",
    source=MCORE + "ModelParallelConfig.__post_init__",
)
def _ep_tp_needs_sp(spec: Spec) -> Broken | None:
    layout = spec.layout
    if spec.model.is_moe and layout.ep > 1 and layout.tp > 1 and not layout.sequence_parallel:
        return Broken(f"layout.sp=false with layout.tp={layout.tp} and layout.ep={layout.ep}", "Leave layout.sp unset.")
    return None


@rule(
    "moe-tp-needs-sp",
    says="experts with tensor parallelism need sequence parallelism",
    why="without it, every tensor rank would dispatch the same tokens",
    source=MCORE + "moe.moe_layer.MoELayer.forward",
    phase=Phase.step,
)
def _moe_tp_needs_sp(spec: Spec) -> Broken | None:
    layout = spec.layout
    if spec.model.is_moe and layout.ep == 1 and layout.tp > 1 and not layout.sequence_parallel:
        return Broken(f"layout.sp=false with layout.tp={layout.tp} and experts", "Leave layout.sp unset.")
    return None


@rule(
    "ep1-etp",
    says="without expert parallelism, ETP equals TP",
    why="with EP=1 the experts' gradients are reduced like dense ones, not over the tensor ranks that then hold "
    "copies, and the copies diverge",
    source=MCORE + "moe.experts (allreduce = EP > 1); tests/rehearsal/test_defects.py",
    phase=Phase.step,
)
def _ep1_etp(spec: Spec) -> Broken | None:
    layout = spec.layout
    if not spec.model.is_moe or layout.ep > 1 or layout.expert_tp == layout.tp:
        return None
    return Broken(
        f"layout.etp={layout.expert_tp} with layout.tp={layout.tp} and layout.ep=1 trains on wrong gradients, "
        "without an error",
        f"Use layout.etp={layout.tp} or layout.ep=2 or more.",
    )


@rule(
    "ep-needs-experts",
    says="expert parallelism needs experts",
    why="a dense model has no experts to distribute",
    source=MCORE + "TransformerConfig.__post_init__",
)
def _ep_needs_experts(spec: Spec) -> Broken | None:
    if spec.layout.ep > 1 and not spec.model.is_moe:
        return Broken(f"layout.ep={spec.layout.ep} with the dense model {spec.model.name}", "Use layout.ep=1.")
    return None


divides(
    "ep-experts",
    "layout.ep",
    lambda spec: spec.layout.ep,
    {"{} experts": lambda model: model.num_moe_experts},
    says="expert parallelism divides the experts",
    why="each rank holds whole experts",
    source=MCORE + "moe.moe_layer.BaseMoELayer",
)

divides(
    "etp-ffn",
    "layout.etp",
    lambda spec: spec.layout.expert_tp,
    {"an expert's {} channels": lambda model: model.moe_ffn_hidden_size if model.is_moe else 0},
    says="expert tensor parallelism divides an expert's width",
    why="experts are split like the dense block",
    source=MCORE + "moe.experts",
)


@rule(
    "etp-bias",
    says="experts with biases need ETP = 1",
    why="each tensor rank would add the bias",
    source=MCORE + "TransformerConfig.__post_init__",
)
def _etp_bias(spec: Spec) -> Broken | None:
    if spec.model.is_moe and spec.model.add_bias_linear and spec.layout.expert_tp > 1:
        return Broken(f"layout.etp={spec.layout.expert_tp} with biased experts", "Use layout.etp=1.")
    return None


@rule(
    "capacity-pad",
    says="padding experts to their capacity needs a capacity and a dispatcher other than flex",
    why="without a capacity there is no size to pad to, and DeepEP sends only the tokens that exist",
    source=MCORE + "TransformerConfig.__post_init__",
)
def _capacity_pad(spec: Spec) -> Broken | None:
    layout = spec.layout
    if not (spec.model.is_moe and layout.moe_pad_expert_input_to_capacity):
        return None
    if not layout.moe_expert_capacity_factor:
        return Broken(
            "layout.moe_pad_expert_input_to_capacity without layout.moe_expert_capacity_factor",
            "Use layout.moe_expert_capacity_factor=1.0.",
        )
    if spec.dispatcher is Dispatcher.flex:
        return Broken(
            "layout.moe_pad_expert_input_to_capacity with layout.dispatcher=flex", "Use layout.dispatcher=alltoall."
        )
    return None


@rule(
    "flex-dispatcher",
    says="the flex dispatcher needs an Ampere or Hopper GPU and more than one rank that shares the experts",
    why="it sends tokens with DeepEP, which NeMo turns on for these GPUs only",
    source="NeMo 2.7.3 DeepEPCallback; " + MCORE + "moe.token_dispatcher.MoEFlexTokenDispatcher.__init__",
    phase=Phase.step,
    only_in=Framework.nemo,
)
def _flex_dispatcher(spec: Spec) -> Broken | None:
    layout, gpu = spec.layout, spec.gpu
    if not spec.model.is_moe or spec.dispatcher is not Dispatcher.flex:
        return None
    if gpu.compute_capability >= BLACKWELL:
        return Broken(f"layout.dispatcher=flex on {gpu.name}", "Use layout.dispatcher=alltoall.")
    if layout.expert_tp * layout.ep == 1:
        return Broken(
            "layout.dispatcher=flex with layout.ep=1", "Use layout.ep=2 or more, or layout.dispatcher=alltoall."
        )
    return None


@rule(
    "experts-cuda-graphs",
    says="CUDA graphs of experts need padding to a capacity, and the alltoall dispatcher; graphs of attention alone do "
    "not capture experts",
    why="the host must wait for the number of tokens of each expert, which cannot be captured",
    source=MCORE + "moe.token_dispatcher.MoEAlltoAllTokenDispatcher (cuda_sync_point)",
    phase=Phase.step,
)
def _experts_cuda_graphs(spec: Spec) -> Broken | None:
    layout = spec.layout
    if not (spec.model.is_moe and layout.cuda_graphs) or spec.levers.cuda_graph_scope is CudaGraphScope.attention:
        return None
    if spec.dispatcher is Dispatcher.alltoall and layout.moe_pad_expert_input_to_capacity:
        return None
    return Broken(
        f"layout.cuda_graphs=true with experts of {spec.model.name} whose input has no fixed size",
        "Use layout.cuda_graphs=false.",
    )


@rule(
    "capacity-drops",
    says="a capacity factor below 2 drops tokens when routing is uneven",
    why="a dropped token skips the experts, so the result differs from dropless training and depends on how the "
    "batch is split",
    source="arXiv:2101.03961 section 2.2",
    severity=Severity.advice,
)
def _capacity_drops(spec: Spec) -> Broken | None:
    factor = spec.layout.moe_expert_capacity_factor
    if spec.model.is_moe and 0 < factor < _SAFE_CAPACITY:
        return Broken(
            f"layout.moe_expert_capacity_factor={factor:g} drops tokens",
            "Use layout.moe_expert_capacity_factor=0 to drop none.",
        )
    return None


@rule(
    "allgather-dispatcher",
    says="the all-gather dispatcher suits up to 8 expert ranks",
    why="it sends every token to every expert rank",
    source="NVIDIA Megatron-LM moe/README",
    severity=Severity.advice,
)
def _allgather_dispatcher(spec: Spec) -> Broken | None:
    layout = spec.layout
    if spec.model.is_moe and layout.dispatcher is Dispatcher.allgather and layout.ep > _MOST_ALLGATHER_RANKS:
        return Broken(f"layout.dispatcher=allgather with layout.ep={layout.ep}", "Use layout.dispatcher=alltoall.")
    return None


@rule(
    "router-fusion",
    says="the fused router needs experts",
    why="a dense model has no router",
    source=MCORE + "moe.router.TopKRouter",
    phase=Phase.never,
)
def _router_fusion(spec: Spec) -> Broken | None:
    if spec.levers.moe_router_fusion and not spec.model.is_moe:
        return Broken(
            f"levers.moe_router_fusion=true with the dense model {spec.model.name}",
            "Use levers.moe_router_fusion=false.",
        )
    return None
