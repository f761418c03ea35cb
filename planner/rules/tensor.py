"""Rules of tensor and sequence parallelism."""

from __future__ import annotations

from collections.abc import Callable

from slipway.configs import Model, Spec
from slipway.planner.rules.registry import MCORE, Broken, Phase, Severity, divides, divisors, nearest_values, rule


def _legal_sizes(model: Model) -> list[int]:
    """The tensor-parallel sizes that divide everything in the model that tensor ranks split."""
    sizes = [model.num_attention_heads, model.num_query_groups, model.ffn_hidden_size]
    if model.mamba_num_heads:
        sizes += [model.mamba_num_heads, model.mamba_num_groups]
    if model.moe_shared_expert_intermediate_size:
        sizes.append(model.moe_shared_expert_intermediate_size)
    return [d for d in divisors(model.num_attention_heads) if all(size % d == 0 for size in sizes)]


def _tp_divides(rule_id: str, sizes: dict[str, Callable[[Model], int]], *, says: str, why: str, source: str) -> None:
    divides(
        rule_id,
        "layout.tp",
        lambda spec: spec.layout.tp,
        {f"the model's {{}} {name}": size for name, size in sizes.items()},
        says=says,
        why=why,
        source=source,
        legal=_legal_sizes,
    )


_tp_divides(
    "tp-heads",
    {"attention heads": lambda model: model.num_attention_heads},
    says="tensor parallelism divides the attention heads",
    why="each rank computes whole heads",
    source=MCORE + "TransformerConfig.__post_init__",
)

_tp_divides(
    "tp-query-groups",
    {"query groups": lambda model: model.num_query_groups},
    says="tensor parallelism divides the query groups",
    why="each rank holds whole key and value heads; this version does not replicate them when TP exceeds the groups",
    source=MCORE + "TransformerConfig.__post_init__",
)


@rule(
    "heads-groups",
    says="the query groups divide the attention heads",
    why="each group's key and value serve equally many heads",
    source="Transformer Engine 2.9 pytorch.attention.DotProductAttention.__init__",
)
def _heads_groups(spec: Spec) -> Broken | None:
    heads, groups = spec.model.num_attention_heads, spec.model.num_query_groups
    if spec.model.is_mla or not groups or heads % groups == 0:
        return None
    return Broken(
        f"model.num_query_groups={groups} does not divide the {heads} attention heads",
        f"Use model.num_query_groups={nearest_values(groups, divisors(heads))}.",
    )


_tp_divides(
    "tp-ffn",
    {"feed-forward channels": lambda model: model.ffn_hidden_size if model.has_dense_layers else 0},
    says="tensor parallelism divides the feed-forward width",
    why="the first GEMM is split by columns, the second by rows",
    source=MCORE + "tensor_parallel.layers divide()",
)

_tp_divides(
    "tp-mamba",
    {
        "Mamba heads": lambda model: model.mamba_num_heads,
        "Mamba groups": lambda model: model.mamba_num_groups if model.mamba_num_heads else 0,
    },
    says="tensor parallelism divides a hybrid's Mamba heads and groups",
    why="each rank scans whole heads with the B and C of their group",
    source=MCORE + "ssm.mamba_mixer.MambaMixer.__init__",
)

_tp_divides(
    "tp-shared-expert",
    {"shared-expert channels": lambda model: model.moe_shared_expert_intermediate_size},
    says="tensor parallelism divides the shared expert's width",
    why="the shared expert is a dense block",
    source=MCORE + "moe.shared_experts",
)

_tp_divides(
    "tp-vocab",
    {"vocabulary rows": lambda model: 0 if model.pad_vocab else model.vocab_size},
    says="tensor parallelism divides a vocabulary that is not padded",
    why="each rank holds the same number of rows",
    source=MCORE + "tensor_parallel.layers VocabParallelEmbedding",
)


@rule(
    "sp-needs-tp",
    says="sequence parallelism needs tensor parallelism",
    why="it shards the activations that tensor ranks would otherwise duplicate",
    source=MCORE + "ModelParallelConfig.__post_init__",
)
def _sp_needs_tp(spec: Spec) -> Broken | None:
    if spec.layout.sp and spec.layout.tp == 1:
        return Broken("layout.sp=true with layout.tp=1", "Leave layout.sp unset, or use layout.tp=2 or more.")
    return None


@rule(
    "sp-sequence",
    says="with sequence parallelism, the tensor-parallel size divides each context rank's share of the sequence",
    why="the sequence is scattered evenly over tensor ranks",
    source=MCORE + "tensor_parallel.mappings _split_along_first_dim",
    phase=Phase.step,
)
def _sp_sequence(spec: Spec) -> Broken | None:
    layout, length = spec.layout, spec.seq_length
    if not layout.sequence_parallel or length % layout.cp or (length // layout.cp) % layout.tp == 0:
        return None
    unit = 2 * layout.cp * layout.tp
    return Broken(
        f"sequence {length} over cp={layout.cp} is not a multiple of layout.tp={layout.tp}",
        f"Use layout.seq_length={-(-length // unit) * unit}.",
    )


@rule(
    "tp-comm-overlap",
    says="overlapped tensor-parallel communication needs sequence parallelism within one NVLink domain, attention that "
    "is not multi-latent, no fp8_blockwise, and with fp8 no layers in bf16",
    why="the overlapped kernels are all-gather and reduce-scatter through shared buffers: NeMo turns them off without "
    "sequence parallelism, Megatron-Core from the first projection of multi-latent attention on, and Transformer "
    "Engine allocates the buffers in one format only, which is not that of blockwise scaling",
    source="NeMo 2.7.3 MegatronCommOverlapCallback; "
    + MCORE
    + "extensions.transformer_engine.TELinear; Transformer Engine 2.11 pytorch.module.base initialize_ub, get_ub and "
    "fill_userbuffers_buffer_for_all_gather",
    phase=Phase.step,
)
def _tp_comm_overlap(spec: Spec) -> Broken | None:
    layout, precision = spec.layout, spec.precision
    if not layout.tp_comm_overlap:
        return None
    leave_out, domain = "Use layout.tp_comm_overlap=false", spec.gpu.nvlink_domain
    if layout.tp == 1:
        return Broken("layout.tp_comm_overlap=true with layout.tp=1", f"{leave_out}, or layout.tp=2 or more.")
    if not layout.sequence_parallel:
        return Broken("layout.tp_comm_overlap=true with layout.sp=false", "Leave layout.sp unset.")
    if layout.tp > domain:
        return Broken(
            f"layout.tp_comm_overlap=true with layout.tp={layout.tp} on NVLink domains of {domain} GPUs",
            f"{leave_out}, or layout.tp={domain} or less.",
        )
    if spec.model.is_mla:
        return Broken("layout.tp_comm_overlap=true with multi-latent attention", f"{leave_out}.")
    if precision.fp8_recipe == "blockwise":
        return Broken(f"layout.tp_comm_overlap=true with precision={precision.name}", f"{leave_out}.")
    if precision.gemm == "fp8" and precision.first_last_layers_bf16:
        return Broken(
            f"layout.tp_comm_overlap=true with precision={precision.name} and layers in bf16",
            f"{leave_out}, or precision.first_last_layers_bf16=false.",
        )
    return None


@rule(
    "tp-nvlink",
    says="tensor parallelism stays inside the NVLink domain",
    why="its all-gathers are on every layer's critical path, and the network is ten times slower than NVLink",
    source="arXiv:2104.04473 section 3.2",
    severity=Severity.advice,
)
def _tp_nvlink(spec: Spec) -> Broken | None:
    if spec.layout.tp <= spec.gpu.nvlink_domain:
        return None
    return Broken(
        f"layout.tp={spec.layout.tp} reaches beyond the {spec.gpu.nvlink_domain} GPUs of {spec.gpu.name}'s "
        "NVLink domain",
        f"Use layout.tp={spec.gpu.nvlink_domain} or less and more layout.pp.",
    )
