"""Legality as named rules: what NeMo 2.7, Megatron-Core 0.15 and Transformer Engine impose on a layout, precision or batch.

A rule that refuses is one that the stack itself refuses (or trains wrongly); a rule marked ``advice`` warns of what it accepts
and an engineer would not. tests/planner/test_rules_are_true.py asks the stack itself about thousands of random layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from slipway.configs import Dispatcher, Fsdp, Model, Recompute, Refusal, Spec, nearest, recipe_names
from slipway.configs.schema import PositionEmbedding
from slipway.planner.flops import recomputes_norms
from slipway.planner.stages import chunks_of, stage_layers

MCORE = "megatron-core 0.15.3 "
SELECTIVE_MODULES = ("core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts")


@dataclass(frozen=True)
class Violation:
    """A broken rule: what was given and what is legal, and the smallest change that mends it."""

    rule: str
    message: str
    fix: str
    advice: bool = False


@dataclass(frozen=True)
class Rule:
    """One condition. ``check`` returns (message, fix) where it is broken."""

    id: str
    says: str
    why: str
    source: str
    check: Callable[[Spec], tuple[str, str] | None]
    advice: bool = False
    when: str = "build"  # build: config, groups or modules refuse; step: the first training step does
    stricter: bool = False  # the stack accepts it and silently builds another model: refused all the same


RULES: list[Rule] = []


def _rule(
    rule_id: str, says: str, why: str, source: str, *, advice: bool = False, when: str = "build", stricter: bool = False
) -> Callable[[Callable[[Spec], tuple[str, str] | None]], Callable[[Spec], tuple[str, str] | None]]:
    def add(check: Callable[[Spec], tuple[str, str] | None]) -> Callable[[Spec], tuple[str, str] | None]:
        RULES.append(Rule(rule_id, says, why, source, check, advice, when, stricter))
        return check

    return add


def divisors(n: int, limit: int = 1 << 30) -> list[int]:
    """All divisors of ``n`` up to ``limit``, ascending."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return [d for d in sorted({*small, *(n // d for d in small)}) if d <= limit]


def nearest_values(given: int, legal: Iterable[int]) -> str:
    """The legal values just below and above ``given``, as a fix names them."""
    values = sorted(set(legal))
    below = [v for v in values if v < given][-1:]
    above = [v for v in values if v > given][:1]
    return " or ".join(str(v) for v in below + above) or "none"


# --- tensor parallelism -------------------------------------------------------------------------------------------------


def _legal_tp(model: Model) -> list[int]:
    sizes = [model.num_attention_heads, model.num_query_groups, model.ffn_hidden_size]
    if model.mamba_num_heads:
        sizes += [model.mamba_num_heads, model.mamba_num_groups]
    if model.moe_shared_expert_intermediate_size:
        sizes.append(model.moe_shared_expert_intermediate_size)
    return [d for d in divisors(model.num_attention_heads) if all(s % d == 0 for s in sizes)]


def _divides(size: int, name: str, tp: int, model: Model) -> tuple[str, str] | None:
    if size % tp == 0:
        return None
    return (
        f"layout.tp={tp} does not divide the model's {size} {name}",
        f"Use layout.tp={nearest_values(tp, _legal_tp(model))}.",
    )


@_rule(
    "tp-heads",
    "tensor parallelism divides the attention heads",
    "each rank computes whole heads",
    MCORE + "TransformerConfig.__post_init__",
)
def _tp_heads(s: Spec) -> tuple[str, str] | None:
    return _divides(s.model.num_attention_heads, "attention heads", s.layout.tp, s.model)


@_rule(
    "tp-query-groups",
    "tensor parallelism divides the query groups",
    "each rank holds whole key/value heads; this version does not replicate them when TP exceeds the groups",
    MCORE + "TransformerConfig.__post_init__",
)
def _tp_groups(s: Spec) -> tuple[str, str] | None:
    return _divides(s.model.num_query_groups, "query groups", s.layout.tp, s.model)


@_rule(
    "tp-ffn",
    "tensor parallelism divides the feed-forward width",
    "the first GEMM is split by columns, the second by rows",
    MCORE + "tensor_parallel.layers divide()",
)
def _tp_ffn(s: Spec) -> tuple[str, str] | None:
    m = s.model
    if not m.has_dense_layers:
        return None  # no dense feed-forward block is built
    return _divides(m.ffn_hidden_size, "feed-forward channels", s.layout.tp, m)


@_rule(
    "tp-mamba",
    "tensor parallelism divides a hybrid's Mamba heads and groups",
    "each rank scans whole heads with the B and C of their group",
    MCORE + "ssm.mamba_mixer.MambaMixer.__init__",
)
def _tp_mamba(s: Spec) -> tuple[str, str] | None:
    m = s.model
    if not m.mamba_num_heads:
        return None
    return _divides(m.mamba_num_heads, "Mamba heads", s.layout.tp, m) or _divides(
        m.mamba_num_groups, "Mamba groups", s.layout.tp, m
    )


@_rule(
    "cp-mamba",
    "context parallelism divides the Mamba heads of a tensor rank, and its groups or a multiple of them",
    "the scan needs the whole sequence, so context ranks exchange it for heads",
    MCORE + "ssm.mamba_context_parallel.MambaContextParallel.__init__",
)
def _cp_mamba(s: Spec) -> tuple[str, str] | None:
    m, lay = s.model, s.layout
    if not m.mamba_num_heads or lay.cp == 1 or _tp_mamba(s):
        return None
    heads, groups = m.mamba_num_heads // lay.tp, m.mamba_num_groups // lay.tp
    legal = [c for c in divisors(heads) if groups % c == 0 or c % groups == 0]
    if lay.cp in legal:
        return None
    return (
        f"layout.cp={lay.cp} does not divide the {heads} Mamba heads and {groups} groups of a rank",
        f"Use layout.cp={nearest_values(lay.cp, legal)}.",
    )


@_rule(
    "hybrid-vpp",
    "a hybrid's pipeline is not interleaved",
    "Megatron-Core's MambaModel has no virtual stages",
    MCORE + "models.mamba.mamba_model.MambaModel",
)
def _hybrid_vpp(s: Spec) -> tuple[str, str] | None:
    if s.model.hybrid_override_pattern and s.layout.vpp > 1:
        return f"layout.vpp={s.layout.vpp} with a hybrid of Mamba and attention", "Use layout.vpp=1."
    return None


@_rule(
    "tp-shared-expert",
    "tensor parallelism divides the shared expert's width",
    "the shared expert is a dense block",
    MCORE + "moe.shared_experts",
)
def _tp_shared(s: Spec) -> tuple[str, str] | None:
    size = s.model.moe_shared_expert_intermediate_size
    return _divides(size, "shared-expert channels", s.layout.tp, s.model) if size else None


@_rule(
    "tp-vocab",
    "tensor parallelism divides a vocabulary that is not padded",
    "each rank holds as many rows",
    MCORE + "tensor_parallel.layers VocabParallelEmbedding",
)
def _tp_vocab(s: Spec) -> tuple[str, str] | None:
    m = s.model
    return None if m.pad_vocab else _divides(m.vocab_size, "vocabulary rows", s.layout.tp, m)


@_rule(
    "sp-needs-tp",
    "sequence parallelism needs tensor parallelism",
    "it shards what tensor ranks would hold twice",
    MCORE + "ModelParallelConfig.__post_init__",
)
def _sp_needs_tp(s: Spec) -> tuple[str, str] | None:
    if s.layout.sp and s.layout.tp == 1:
        return "layout.sp=true with layout.tp=1", "Leave layout.sp unset, or use layout.tp=2 or more."
    return None


@_rule(
    "sp-sequence",
    "with sequence parallelism, tensor ranks divide each context rank's share of the sequence",
    "the sequence is scattered evenly over tensor ranks",
    MCORE + "tensor_parallel.mappings _split_along_first_dim",
    when="step",
)
def _sp_sequence(s: Spec) -> tuple[str, str] | None:
    lay, seq = s.layout, s.seq_length
    if lay.sequence_parallel and seq % lay.cp == 0 and (seq // lay.cp) % lay.tp:
        up = -(-seq // (2 * lay.cp * lay.tp)) * 2 * lay.cp * lay.tp
        return (
            f"sequence {seq} over cp={lay.cp} is not a multiple of layout.tp={lay.tp}",
            f"Use layout.seq_length={up}.",
        )
    return None


@_rule(
    "ep-tp-needs-sp",
    "expert and tensor parallelism together need sequence parallelism",
    "without it every tensor rank would dispatch the same tokens; this version cannot even word its warning (NameError)",
    MCORE + "ModelParallelConfig.__post_init__",
)
def _ep_tp_sp(s: Spec) -> tuple[str, str] | None:
    if s.model.is_moe and s.layout.ep > 1 and s.layout.tp > 1 and not s.layout.sequence_parallel:
        return f"layout.sp=false with layout.tp={s.layout.tp} and layout.ep={s.layout.ep}", "Leave layout.sp unset."
    return None


@_rule(
    "moe-tp-needs-sp",
    "experts with tensor parallelism need sequence parallelism",
    "without it every tensor rank would dispatch the same tokens",
    MCORE + "moe.moe_layer.MoELayer.forward",
    when="step",
)
def _moe_tp_sp(s: Spec) -> tuple[str, str] | None:
    if s.model.is_moe and s.layout.ep == 1 and s.layout.tp > 1 and not s.layout.sequence_parallel:
        return f"layout.sp=false with layout.tp={s.layout.tp} and experts", "Leave layout.sp unset."
    return None


@_rule(
    "ep1-etp",
    "without expert parallelism ETP equals TP",
    "with EP=1 the experts' gradients are reduced as dense ones, not over the tensor ranks that then hold copies: the copies drift apart",
    MCORE + "moe.experts (allreduce = EP > 1); tests/rehearsal/test_defects.py",
    when="step",
)
def _ep1_etp(s: Spec) -> tuple[str, str] | None:
    if s.model.is_moe and s.layout.ep == 1 and s.layout.expert_tp != s.layout.tp:
        return (
            f"layout.etp={s.layout.expert_tp} with layout.tp={s.layout.tp} and layout.ep=1 trains on wrong gradients, without an error",
            f"Use layout.etp={s.layout.tp} or layout.ep=2 or more.",
        )
    return None


@_rule(
    "tp-nvlink",
    "tensor parallelism stays inside the NVLink domain",
    "its all-gathers are on every layer's critical path and the network is ten times slower",
    "arXiv:2104.04473 section 3.2",
    advice=True,
)
def _tp_nvlink(s: Spec) -> tuple[str, str] | None:
    if s.layout.tp > s.gpu.nvlink_domain:
        return (
            f"layout.tp={s.layout.tp} reaches beyond the {s.gpu.nvlink_domain} GPUs of {s.gpu.name}'s NVLink domain",
            f"Use layout.tp={s.gpu.nvlink_domain} or less and more layout.pp.",
        )
    return None


# --- the world and the batch ----------------------------------------------------------------------------------------------


@_rule(
    "world-size",
    "TP x PP x CP divides the GPUs",
    "data-parallel ranks are what is left",
    MCORE + "parallel_state.initialize_model_parallel",
)
def _world(s: Spec) -> tuple[str, str] | None:
    lay = s.layout
    ranks = lay.tp * lay.pp * lay.cp
    if s.gpus % ranks == 0:
        return None
    up = -(-s.gpus // ranks) * ranks
    return (
        f"tp={lay.tp} x pp={lay.pp} x cp={lay.cp} = {ranks} does not divide gpus={s.gpus}",
        f"Use gpus={nearest_values(s.gpus, [up - ranks, up]) if up > ranks else up}.",
    )


@_rule(
    "expert-world",
    "ETP x EP x PP divides the GPUs",
    "expert-data ranks are what is left",
    MCORE + "parallel_state.initialize_model_parallel",
)
def _expert_world(s: Spec) -> tuple[str, str] | None:
    lay = s.layout
    ranks = lay.expert_tp * lay.ep * lay.pp
    if s.gpus % ranks == 0:
        return None
    room = s.gpus // lay.pp // lay.expert_tp if s.gpus % (lay.pp * lay.expert_tp) == 0 else 0
    legal = [e for e in divisors(max(s.model.num_moe_experts, 1)) if room and room % e == 0]
    fix = f"Use layout.ep={nearest_values(lay.ep, legal)}." if legal else "Use layout.etp=1."
    return f"etp={lay.expert_tp} x ep={lay.ep} x pp={lay.pp} = {ranks} does not divide gpus={s.gpus}", fix


@_rule(
    "whole-nodes",
    "a run takes whole nodes",
    "SLURM and torchrun start the same number of ranks on every node",
    "NeMo-Run SlurmExecutor nodes x ntasks_per_node",
    advice=True,
)
def _nodes(s: Spec) -> tuple[str, str] | None:
    per = s.gpus_per_node
    if s.gpus <= per or s.gpus % per == 0:
        return None
    return (
        f"gpus={s.gpus} is not a multiple of the {per} GPUs of a {s.gpu.name} node",
        f"Use gpus={s.gpus // per * per} or {(s.gpus // per + 1) * per}.",
    )


@_rule(
    "batch",
    "the global batch is a multiple of micro-batch x data-parallel ranks",
    "every rank gets the same number of micro-batches",
    MCORE + "num_microbatches_calculator",
)
def _batch(s: Spec) -> tuple[str, str] | None:
    lay, dp = s.layout, s.dp
    if not dp or lay.gbs % (lay.mbs * dp) == 0:
        return None
    unit = lay.mbs * dp
    if lay.gbs < unit:
        return (
            f"layout.gbs={lay.gbs} cannot feed {dp} data-parallel ranks with layout.mbs={lay.mbs}: {unit} sequences are needed",
            f"Use layout.gbs={unit}, or fewer GPUs.",
        )
    return (
        f"layout.gbs={lay.gbs} is not a multiple of mbs={lay.mbs} x dp={dp} = {unit}",
        f"Use layout.gbs={lay.gbs // unit * unit} or {(lay.gbs // unit + 1) * unit}.",
    )


# --- pipeline parallelism ---------------------------------------------------------------------------------------------------


@_rule(
    "vpp-needs-pp",
    "interleaving needs pipeline parallelism",
    "model chunks are interleaved over pipeline ranks",
    MCORE + "parallel_state.initialize_model_parallel",
)
def _vpp_needs_pp(s: Spec) -> tuple[str, str] | None:
    if s.layout.vpp > 1 and s.layout.pp == 1:
        return f"layout.vpp={s.layout.vpp} with layout.pp=1", "Use layout.vpp=1, or layout.pp=2 or more."
    return None


@_rule(
    "pp-uneven",
    "uneven first or last stages leave whole layers for the stages between, and are not mixed with account_for_embedding or _loss",
    "the two ways of uneven splitting exclude each other",
    MCORE + "TransformerConfig.__post_init__",
)
def _pp_uneven(s: Spec) -> tuple[str, str] | None:
    lay, layers = s.layout, s.model.num_layers
    first, last = lay.num_layers_in_first_pipeline_stage, lay.num_layers_in_last_pipeline_stage
    if not (first or last):
        return None
    if lay.account_for_embedding or lay.account_for_loss:
        return "uneven stages together with layout.account_for_embedding or account_for_loss", "Use one or the other."
    middle = lay.pp - bool(first) - bool(last)
    if lay.pp > 1 and middle and stage_layers(layers, lay) is None:
        return (
            f"first={first} and last={last} leave {layers - first - last} of {layers} layers for {middle} stages",
            "Choose them so that the rest divides evenly.",
        )
    return None


@_rule(
    "uneven-sum",
    "a first and a last stage with none between hold all layers",
    "Megatron-Core builds as many as the two are given, and trains that other model",
    MCORE + "transformer_block.get_num_layers_to_build",
    stricter=True,
)
def _uneven_sum(s: Spec) -> tuple[str, str] | None:
    lay, layers = s.layout, s.model.num_layers
    first, last = lay.num_layers_in_first_pipeline_stage, lay.num_layers_in_last_pipeline_stage
    if lay.pp == 2 and first and last and first + last != layers:
        return (
            f"first={first} and last={last} are {first + last} of {layers} layers",
            f"Use last={max(layers - first, 1)}, or leave it unset.",
        )
    return None


@_rule(
    "uneven-needs-pp",
    "uneven stages need pipeline parallelism",
    "with one stage Megatron-Core builds only the layers of the stage that is named, and trains that smaller model",
    MCORE + "transformer_block.get_num_layers_to_build",
    stricter=True,
)
def _uneven_needs_pp(s: Spec) -> tuple[str, str] | None:
    lay = s.layout
    if lay.pp == 1 and (lay.num_layers_in_first_pipeline_stage or lay.num_layers_in_last_pipeline_stage):
        return "uneven pipeline stages with layout.pp=1", "Leave them unset, or use layout.pp=2 or more."
    return None


def _legal_pp(s: Spec) -> list[int]:
    slots = s.model.num_layers + s.layout.account_for_embedding + s.layout.account_for_loss
    return [p for p in divisors(slots) if slots // p % s.layout.vpp == 0 or p == 1]


@_rule(
    "pp-layers",
    "pipeline stages divide the layers, an accounted embedding or loss counting as one",
    "stages hold the same number of slots",
    MCORE + "transformer_block.get_num_layers_to_build",
)
def _pp_layers(s: Spec) -> tuple[str, str] | None:
    lay, layers = s.layout, s.model.num_layers
    if lay.num_layers_in_first_pipeline_stage or lay.num_layers_in_last_pipeline_stage:
        return None
    slots = layers + lay.account_for_embedding + lay.account_for_loss
    if slots % lay.pp == 0:
        return None
    fix = f"Use layout.pp={nearest_values(lay.pp, _legal_pp(s))}"
    for embedding, loss in ((True, True), (False, True)):
        if (layers + embedding + loss) % (lay.pp * lay.vpp) == 0:
            fix += ", or layout.account_for_loss=true" + (" layout.account_for_embedding=true" if embedding else "")
            break
    return f"layout.pp={lay.pp} does not divide {slots} layers", fix + "."


@_rule(
    "vpp-layers",
    "model chunks divide each stage's layers",
    "every chunk of a stage holds the same number of slots",
    MCORE + "transformer_block.get_num_layers_to_build",
)
def _vpp_layers(s: Spec) -> tuple[str, str] | None:
    lay = s.layout
    per_stage = stage_layers(s.model.num_layers, lay)
    if lay.pp == 1 or per_stage is None or not any(n % lay.vpp for n in per_stage):
        return None
    return (
        f"layout.vpp={lay.vpp} does not divide the {per_stage[0]} layers of a stage",
        f"Use layout.vpp={nearest_values(lay.vpp, divisors(per_stage[0]))}.",
    )


@_rule(
    "pp-account",
    "an accounted embedding or loss fits on its chunk",
    "a chunk cannot hold fewer than no layers",
    MCORE + "transformer_block.get_num_layers_to_build",
)
def _pp_account(s: Spec) -> tuple[str, str] | None:
    per_stage = stage_layers(s.model.num_layers, s.layout)
    if per_stage is None or any(n % s.layout.vpp for n in per_stage) or chunks_of(s) is not None:
        return None
    return (
        "the first or last chunk has fewer slots than the embedding and loss that it must hold",
        "Use a smaller layout.pp or layout.vpp.",
    )


@_rule(
    "interleaved-micro-batches",
    "with interleaving the micro-batches are a multiple of PP",
    "the schedule runs them in groups of PP and the remainder would deadlock",
    MCORE + "pipeline_parallel.schedules.forward_backward_pipelining_with_interleaving",
    when="step",
)
def _interleaved(s: Spec) -> tuple[str, str] | None:
    lay, dp = s.layout, s.dp
    if lay.vpp == 1 or lay.pp == 1 or not dp or lay.gbs % (lay.mbs * dp):
        return None
    m = lay.gbs // (lay.mbs * dp)
    if m % lay.pp == 0:
        return None
    unit = lay.mbs * dp * lay.pp
    return (
        f"{m} micro-batches are not a multiple of layout.pp={lay.pp} and layout.vpp={lay.vpp}",
        f"Use layout.gbs={nearest_values(lay.gbs, [max(unit, lay.gbs // unit * unit), (lay.gbs // unit + 1) * unit])}, or layout.vpp=1.",
    )


@_rule(
    "tied-pp",
    "tied embeddings over several stages cost a copy and an all-reduce",
    "first and last stage each hold the table and sum its gradients",
    MCORE + "distributed.finalize_model_grads",
    advice=True,
)
def _tied(s: Spec) -> tuple[str, str] | None:
    if s.model.tied and s.layout.pp > 1:
        return "tied embeddings are held twice with layout.pp > 1", "Use layout.pp=1 if it fits."
    return None


# --- context parallelism and sequence -----------------------------------------------------------------------------------------


@_rule(
    "cp-sequence",
    "2 x CP divides the sequence",
    "each rank takes one chunk from the front and one from the back, so that causal work balances",
    "megatron-core 0.15.3 utils.get_batch_on_this_cp_rank",
    when="step",
)
def _cp_sequence(s: Spec) -> tuple[str, str] | None:
    lay, seq = s.layout, s.seq_length
    if lay.cp == 1 or seq % (2 * lay.cp) == 0:
        return None
    return (
        f"sequence {seq} is not a multiple of 2 x layout.cp={lay.cp}",
        f"Use layout.seq_length={-(-seq // (2 * lay.cp)) * 2 * lay.cp} or layout.cp={nearest_values(lay.cp, divisors(max(seq // 2, 1)))}.",
    )


@_rule(
    "cp-backend",
    "context parallelism needs Transformer Engine's flash or fused attention",
    "the ring exchange of keys and values lives there",
    "Transformer Engine attention.dot_product_attention context_parallel",
    when="step",
)
def _cp_backend(s: Spec) -> tuple[str, str] | None:
    if s.layout.cp > 1 and s.layout.attention_backend in ("unfused", "local"):
        return (
            f"layout.cp={s.layout.cp} with layout.attention_backend={s.layout.attention_backend}",
            "Use layout.attention_backend=auto, flash or fused.",
        )
    return None


@_rule(
    "attention-backend",
    "the attention backend is a known one",
    "Megatron-Core's AttnBackend",
    MCORE + "transformer.enums.AttnBackend",
)
def _backend(s: Spec) -> tuple[str, str] | None:
    legal = ("auto", "flash", "fused", "unfused", "local")
    return (
        None
        if s.layout.attention_backend in legal
        else (
            f"layout.attention_backend={s.layout.attention_backend} is unknown",
            "Use one of " + ", ".join(legal) + ".",
        )
    )


@_rule(
    "window-cp",
    "sliding windows and context parallelism do not mix with the ring exchange",
    "Transformer Engine supports windows under CP only with all-to-all",
    "Transformer Engine 2.x context_parallel cp_comm_type",
    advice=True,
)
def _window_cp(s: Spec) -> tuple[str, str] | None:
    if s.model.window_size and s.layout.cp > 1:
        return f"a sliding window of {s.model.window_size} with layout.cp={s.layout.cp}", "Use layout.cp=1."
    return None


@_rule(
    "position-limit",
    "the sequence stays within the positions that the model was made for",
    "beyond them rotary positions are extrapolated",
    "the model's own config",
    advice=True,
)
def _positions(s: Spec) -> tuple[str, str] | None:
    m = s.model
    if m.position_embedding_type is not PositionEmbedding.alibi and s.seq_length > m.max_position_embeddings:
        return (
            f"sequence {s.seq_length} exceeds the {m.max_position_embeddings} positions of {m.name}",
            f"Use layout.seq_length={m.max_position_embeddings} or less.",
        )
    return None


# --- experts ---------------------------------------------------------------------------------------------------------------


@_rule(
    "ep-needs-experts",
    "expert parallelism needs experts",
    "there is nothing to spread",
    MCORE + "TransformerConfig.__post_init__",
)
def _ep_needs(s: Spec) -> tuple[str, str] | None:
    return (
        (f"layout.ep={s.layout.ep} with the dense model {s.model.name}", "Use layout.ep=1.")
        if s.layout.ep > 1 and not s.model.is_moe
        else None
    )


@_rule(
    "ep-experts",
    "expert parallelism divides the experts",
    "each rank holds whole experts",
    MCORE + "moe.moe_layer.BaseMoELayer",
)
def _ep_experts(s: Spec) -> tuple[str, str] | None:
    n, ep = s.model.num_moe_experts, s.layout.ep
    return (
        (f"layout.ep={ep} does not divide {n} experts", f"Use layout.ep={nearest_values(ep, divisors(n))}.")
        if n and n % ep
        else None
    )


@_rule(
    "etp-ffn",
    "expert tensor parallelism divides an expert's width",
    "experts are split as the dense block is",
    MCORE + "moe.experts",
)
def _etp_ffn(s: Spec) -> tuple[str, str] | None:
    n, etp = s.model.moe_ffn_hidden_size, s.layout.expert_tp
    return (
        (
            f"layout.etp={etp} does not divide an expert's {n} channels",
            f"Use layout.etp={nearest_values(etp, divisors(n))}.",
        )
        if s.model.is_moe and n % etp
        else None
    )


@_rule(
    "etp-bias",
    "experts with biases need ETP = 1",
    "the bias would be added once a rank",
    MCORE + "TransformerConfig.__post_init__",
)
def _etp_bias(s: Spec) -> tuple[str, str] | None:
    return (
        (f"layout.etp={s.layout.expert_tp} with biased experts", "Use layout.etp=1.")
        if s.model.is_moe and s.model.add_bias_linear and s.layout.expert_tp > 1
        else None
    )


@_rule(
    "capacity-pad",
    "padding experts to their capacity needs a capacity, and not the flex dispatcher",
    "there is no size to pad to; DeepEP sends what there is",
    MCORE + "TransformerConfig.__post_init__",
)
def _capacity_pad(s: Spec) -> tuple[str, str] | None:
    lay = s.layout
    if not (s.model.is_moe and lay.moe_pad_expert_input_to_capacity):
        return None
    if not lay.moe_expert_capacity_factor:
        return (
            "layout.moe_pad_expert_input_to_capacity without layout.moe_expert_capacity_factor",
            "Use layout.moe_expert_capacity_factor=1.0.",
        )
    if lay.dispatcher is Dispatcher.flex:
        return "layout.moe_pad_expert_input_to_capacity with layout.dispatcher=flex", "Use layout.dispatcher=alltoall."
    return None


@_rule(
    "capacity-drops",
    "a capacity below 2 drops tokens where the router is not even",
    "what is dropped passes the layer by: another training, and one that depends on how the batch is split",
    "arXiv:2101.03961 section 2.2",
    advice=True,
)
def _capacity_drops(s: Spec) -> tuple[str, str] | None:
    factor = s.layout.moe_expert_capacity_factor
    if s.model.is_moe and 0 < factor < 2:
        return (
            f"layout.moe_expert_capacity_factor={factor:g} drops tokens",
            "Use layout.moe_expert_capacity_factor=0 to drop none.",
        )
    return None


@_rule(
    "allgather-dispatcher",
    "the all-gather dispatcher sends every token to every expert rank",
    "it is right only for a few experts",
    "NVIDIA Megatron-LM moe/README",
    advice=True,
)
def _allgather(s: Spec) -> tuple[str, str] | None:
    return (
        (f"layout.dispatcher=allgather with layout.ep={s.layout.ep}", "Use layout.dispatcher=alltoall.")
        if s.model.is_moe and s.layout.dispatcher is Dispatcher.allgather and s.layout.ep > 8
        else None
    )


# --- memory savers ------------------------------------------------------------------------------------------------------------


@_rule(
    "recompute-modules",
    "selective recompute names modules that exist",
    "each is a code path in the layer",
    MCORE + "TransformerConfig.__post_init__",
)
def _modules(s: Spec) -> tuple[str, str] | None:
    lay, m = s.layout, s.model
    if lay.recompute is not Recompute.selective:
        return None
    for name in lay.recompute_modules:
        if name not in SELECTIVE_MODULES:
            return f"layout.recompute_modules has {name!r}", "Use some of " + ", ".join(SELECTIVE_MODULES) + "."
        if name == "mla_up_proj" and not m.is_mla:
            return f"recomputing mla_up_proj in {m.name}, which has no latent attention", "Leave it out."
        if name == "moe_act" and not m.is_moe:
            return f"recomputing moe_act in the dense model {m.name}", "Leave it out."
        if name in ("moe_act", "layernorm") and s.precision.fp8_recipe == "delayed":
            return (
                f"recomputing {name} with precision={s.precision.name}: delayed scaling would update its history twice",
                "Use precision=fp8_current.",
            )
    return None


@_rule(
    "recompute-nothing",
    "what is recomputed gives memory back",
    "fused attention keeps one number a query and head beside its output, and a norm that is joined to its linear layer is passed over: Llama 3 "
    "70B takes 55.6 GB with mlp and with mlp and core_attn, 1.1 % slower, and with core_attn and layernorm runs out",
    MCORE
    + "attention.Attention._checkpointed_attention_forward, TransformerLayer.__init__; Megatron-Bridge, notes on activation recompute",
    advice=True,
)
def _recompute_nothing(s: Spec) -> tuple[str, str] | None:
    lay, m = s.layout, s.model
    if lay.recompute is not Recompute.selective:
        return None
    useless = [] if lay.attention_backend in ("unfused", "local") else ["core_attn"]
    useless += [] if recomputes_norms(m) else ["layernorm"]
    found = [name for name in lay.recompute_modules or ["core_attn"] if name in useless]
    if not found:
        return None
    return (
        f"layout.recompute=selective of {' and '.join(found)} frees next to nothing in {m.name}",
        f"Name what is large: layout.recompute_modules=[{'moe_act' if m.is_moe else 'mlp'}].",
    )


@_rule(
    "recompute-full",
    "full recompute has a method and a number of layers within a stage",
    "uniform groups or the first layers of a stage are recomputed",
    MCORE + "TransformerConfig.__post_init__",
    when="step",
)
def _full(s: Spec) -> tuple[str, str] | None:
    lay = s.layout
    if lay.recompute is not Recompute.full:
        return None
    if lay.recompute_method not in ("", "uniform", "block"):
        return f"layout.recompute_method={lay.recompute_method} is unknown", "Use uniform or block."
    if lay.recompute_num_layers < 0:
        return f"layout.recompute_num_layers={lay.recompute_num_layers}", "Use 1 or more."
    return None


@_rule(
    "mtp-recompute",
    "multi-token prediction is recomputed layer by layer",
    "its layers are checkpointed one at a time",
    MCORE + "MultiTokenPredictionLayer._checkpointed_forward",
    when="step",
)
def _mtp_recompute(s: Spec) -> tuple[str, str] | None:
    lay = s.layout
    groups = lay.recompute is Recompute.full and lay.recompute_method != "block" and lay.recompute_num_layers > 1
    if s.model.mtp_num_layers and groups:
        return (
            f"layout.recompute_num_layers={lay.recompute_num_layers} with model.mtp_num_layers",
            "Use layout.recompute_num_layers=1.",
        )
    return None


@_rule(
    "mtp-tied-pp",
    "multi-token prediction with tied embeddings stays on one stage",
    "the last stage would hold the table twice under one name, and its checkpoint is refused",
    MCORE + "LanguageModule.tie_embeddings_and_output_weights_state_dict",
    when="step",
)
def _mtp_tied(s: Spec) -> tuple[str, str] | None:
    if s.model.mtp_num_layers and s.model.tied and s.layout.pp > 1:
        return f"layout.pp={s.layout.pp} with model.mtp_num_layers and tied embeddings", "Use layout.pp=1."
    return None


@_rule(
    "mtp-block",
    "recompute by block leaves multi-token prediction out",
    "its layers then keep everything, on the stage that also holds the logits",
    MCORE + "MultiTokenPredictionLayer._checkpointed_forward",
    advice=True,
)
def _mtp_block(s: Spec) -> tuple[str, str] | None:
    if s.model.mtp_num_layers and s.layout.recompute is Recompute.full and s.layout.recompute_method == "block":
        return (
            "layout.recompute_method=block does not recompute the layers of model.mtp_num_layers",
            "Use layout.recompute_method=uniform.",
        )
    return None


@_rule(
    "offload",
    "activation offload excludes pipeline parallelism and recompute",
    "the offload hooks assume one pass in order",
    MCORE + "TransformerConfig.__post_init__",
)
def _offload(s: Spec) -> tuple[str, str] | None:
    lay = s.layout
    if not lay.cpu_offload_layers:
        return None
    if lay.pp > 1:
        return "layout.cpu_offload_layers with layout.pp > 1", "Use layout.pp=1 or recompute."
    if lay.recompute is not Recompute.none:
        return "layout.cpu_offload_layers together with recompute", "Use one of them."
    if not 0 < lay.cpu_offload_layers < s.model.num_layers:
        return (
            f"layout.cpu_offload_layers={lay.cpu_offload_layers} of {s.model.num_layers} layers",
            f"Use at most {s.model.num_layers - 1}.",
        )
    return None


@_rule(
    "cuda-graphs",
    "CUDA graphs exclude recompute and offload",
    "a captured graph cannot replay a Python-level recomputation",
    MCORE + "TransformerConfig.__post_init__",
)
def _graphs(s: Spec) -> tuple[str, str] | None:
    lay = s.layout
    if lay.cuda_graphs and lay.recompute is not Recompute.none:
        return f"layout.cuda_graphs=true with layout.recompute={lay.recompute.value}", "Use one of them."
    if lay.cuda_graphs and lay.cpu_offload_layers:
        return "layout.cuda_graphs=true with activation offload", "Use one of them."
    return None


@_rule(
    "fsdp-pp",
    "Megatron-FSDP is used without pipeline parallelism or interleaving",
    "NeMo wraps one model chunk",
    "NeMo 2.7.3 MegatronStrategy; Megatron-Core docs, Megatron-FSDP",
    advice=True,
)
def _fsdp_pp(s: Spec) -> tuple[str, str] | None:
    return (
        (f"layout.fsdp=megatron with layout.pp={s.layout.pp}", "Use layout.pp=1.")
        if s.layout.fsdp is Fsdp.megatron and s.layout.pp > 1
        else None
    )


@_rule(
    "overlap-flags",
    "parameters are gathered under compute only where gradients are reduced under it, and the optimizer is distributed",
    "without overlap_grad_reduce there is one bucket, whose gather nothing can hide; without a distributed optimizer nothing is gathered",
    MCORE + "distributed.DistributedDataParallel.__init__ (bucket_size)",
    advice=True,
)
def _overlap_flags(s: Spec) -> tuple[str, str] | None:
    lay = s.layout
    if s.dp == 1 or not lay.overlap_param_gather or lay.overlap_grad_reduce or not lay.distributed_optimizer:
        return None
    return (
        "layout.overlap_grad_reduce=false leaves layout.overlap_param_gather nothing to hide under",
        "Leave layout.overlap_grad_reduce on.",
    )


@_rule(
    "fsdp-optimizer",
    "Megatron-FSDP shards the optimizer too",
    "its buffers are the distributed optimizer's",
    "NeMo 2.7.3 MegatronStrategy",
    when="step",
)
def _fsdp_opt(s: Spec) -> tuple[str, str] | None:
    return (
        ("layout.fsdp=megatron with layout.distributed_optimizer=false", "Leave layout.distributed_optimizer on.")
        if s.layout.fsdp is Fsdp.megatron and not s.layout.distributed_optimizer
        else None
    )


# --- precision ----------------------------------------------------------------------------------------------------------------


@_rule(
    "precision-gpu",
    "the GPU's tensor cores have the precision",
    "each recipe needs its architecture's formats",
    "Transformer Engine fp8 check_*_support",
    when="step",
)
def _precision_gpu(s: Spec) -> tuple[str, str] | None:
    p, cc = s.precision, s.gpu.compute_capability
    if p.gemm == "fp32" or (
        p.min_compute_capability <= cc and (not p.max_compute_capability or cc <= p.max_compute_capability)
    ):
        return None
    if cc < 90:
        return f"precision={p.name} on {s.gpu.name}, which has no fp8", "Use precision=bf16."
    return f"precision={p.name} on {s.gpu.name} (compute capability {cc / 10:.1f})", "Use precision=" + (
        "mxfp8 or fp8_current." if cc >= 100 else "fp8_current, fp8_delayed or fp8_blockwise."
    )


@_rule(
    "fp8-dimensions",
    "fp8 GEMMs have dimensions that are multiples of 16 (32 for mxfp8, 128 blocks for blockwise)",
    "the scaled tiles must be whole",
    "Transformer Engine assert_dim_for_fp8_exec",
    when="step",
)
def _fp8_dims(s: Spec) -> tuple[str, str] | None:
    p, m, lay = s.precision, s.model, s.layout
    if p.gemm not in ("fp8", "fp4"):
        return None
    unit = {"mxfp8": 32, "nvfp4": 32}.get(p.fp8_recipe, 16)
    rows = s.seq_length * lay.mbs // lay.cp // (lay.tp if lay.sequence_parallel else 1)
    sizes = {"hidden size": m.hidden_size, "tokens of a rank": rows}
    if m.has_dense_layers:
        sizes["feed-forward channels of a rank"] = m.ffn_hidden_size // lay.tp
    if m.is_moe:
        sizes["expert channels of a rank"] = m.moe_ffn_hidden_size // lay.expert_tp
    for name, size in sizes.items():
        if size % unit:
            return (
                f"precision={p.name}: {name} = {size} is not a multiple of {unit}",
                "Use precision=bf16, or a smaller layout.tp or layout.cp.",
            )
    return None


@_rule(
    "fp8-param-gather",
    "fp8 parameters are gathered by a distributed optimizer or FSDP",
    "only they hold the fp32 master that fp8 weights are cast from",
    "NVIDIA Megatron-LM issue 2272 and arguments.py",
    when="step",
)
def _param_gather(s: Spec) -> tuple[str, str] | None:
    if s.precision.fp8_param_gather and not s.layout.distributed_optimizer and s.layout.fsdp is Fsdp.none:
        return (
            f"precision={s.precision.name} gathers fp8 parameters and layout.distributed_optimizer=false",
            "Leave layout.distributed_optimizer on, or use precision.fp8_param_gather=false.",
        )
    return None


@_rule(
    "bf16-layers",
    "the layers kept in bf16 fit on a stage",
    "they are counted from a stage's ends",
    MCORE + "TransformerConfig.__post_init__",
)
def _bf16_layers(s: Spec) -> tuple[str, str] | None:
    p = s.precision
    most = s.model.num_layers // s.layout.pp
    worst = max(p.num_layers_at_start_in_bf16, p.num_layers_at_end_in_bf16)
    if p.gemm == "fp8" and p.first_last_layers_bf16 and worst > most:
        return f"{worst} layers in bf16 with {most} layers a stage", "Use a smaller layout.pp."
    return None


@_rule(
    "nvfp4",
    "nvfp4 can be planned but not trained here",
    "NeMo 2.7.3 with megatron-core 0.15.3 has no recipe for it",
    "NeMo 2.7.3 recipes.precision",
    advice=True,
)
def _nvfp4(s: Spec) -> tuple[str, str] | None:
    return ("precision=nvfp4 is planned only", "Train with precision=mxfp8.") if s.precision.gemm == "fp4" else None


# --- the whole --------------------------------------------------------------------------------------------------------------


def violations(spec: Spec, *, advice: bool = False) -> list[Violation]:
    """Every broken rule of ``spec``; with ``advice`` those that only warn, else those that refuse."""
    out: list[Violation] = []
    for rule in RULES:
        if rule.advice is advice:
            found = rule.check(spec)
            if found:
                out.append(Violation(rule.id, found[0] + ".", found[1], rule.advice))
    return out


def is_legal(spec: Spec) -> bool:
    """Whether no refusing rule is broken; stops at the first that is."""
    return not any(rule.check(spec) for rule in RULES if not rule.advice)


def require_legal(spec: Spec) -> None:
    """Raise the first violation as a Refusal, or that there is nothing to build."""
    if not spec.model.nemo_config:
        raise Refusal(
            f"model={spec.model.name} is known to the planner only: no NeMo recipe is built for it here",
            f"slipway check and plan answer for it; {nearest(spec.model.name, recipe_names())}",
        )
    broken = violations(spec)
    if broken:
        first = broken[0]
        raise Refusal(first.message, first.fix, first.rule)
