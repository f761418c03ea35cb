"""Rules of context parallelism, attention and the sequence length."""

from __future__ import annotations

from slipway.configs import Spec
from slipway.configs.schema import PositionEmbedding
from slipway.planner.rules.registry import MCORE, Broken, Framework, Phase, Severity, divisors, nearest_values, rule

_BACKENDS = ("auto", "flash", "fused", "unfused", "local")  # Megatron-Core's AttnBackend
UNFUSED_BACKENDS = ("unfused", "local")
"""The attention backends that write the scores to memory and have no ring exchange."""


@rule(
    "cp-mamba",
    says="context parallelism divides the Mamba heads of a tensor rank, and its size divides the rank's Mamba groups "
    "or is a multiple of them",
    why="the scan needs the whole sequence, so context ranks exchange it for heads",
    source=MCORE + "ssm.mamba_context_parallel.MambaContextParallel.__init__",
)
def _cp_mamba(spec: Spec) -> Broken | None:
    model, cp, tp = spec.model, spec.layout.cp, spec.layout.tp
    if not model.mamba_num_heads or cp == 1 or model.mamba_num_heads % tp or model.mamba_num_groups % tp:
        return None  # the last two break tp-mamba
    heads, groups = model.mamba_num_heads // tp, model.mamba_num_groups // tp
    legal = [size for size in divisors(heads) if groups % size == 0 or size % groups == 0]
    if cp in legal:
        return None
    return Broken(
        f"layout.cp={cp} does not divide the {heads} Mamba heads and {groups} groups of a rank",
        f"Use layout.cp={nearest_values(cp, legal)}.",
    )


@rule(
    "cp-sequence",
    says="2 x CP divides the sequence",
    why="each rank takes one chunk from the front and one from the back, which balances causal attention",
    source=MCORE + "utils.get_batch_on_this_cp_rank",
    phase=Phase.step,
)
def _cp_sequence(spec: Spec) -> Broken | None:
    cp, length = spec.layout.cp, spec.seq_length
    if cp == 1 or length % (2 * cp) == 0:
        return None
    return Broken(
        f"sequence {length} is not a multiple of 2 x layout.cp={cp}",
        f"Use layout.seq_length={-(-length // (2 * cp)) * 2 * cp} or "
        f"layout.cp={nearest_values(cp, divisors(max(length // 2, 1)))}.",
    )


@rule(
    "cp-backend",
    says="context parallelism needs Transformer Engine's flash or fused attention",
    why="the ring exchange of keys and values is implemented there",
    source="Transformer Engine attention.dot_product_attention context_parallel",
    phase=Phase.step,
)
def _cp_backend(spec: Spec) -> Broken | None:
    layout = spec.layout
    if layout.cp > 1 and layout.attention_backend in UNFUSED_BACKENDS:
        return Broken(
            f"layout.cp={layout.cp} with layout.attention_backend={layout.attention_backend}",
            "Use layout.attention_backend=auto, flash or fused.",
        )
    return None


@rule(
    "attention-backend",
    says="the attention backend is one that Megatron-Core has",
    why="it is a member of Megatron-Core's AttnBackend",
    source=MCORE + "transformer.enums.AttnBackend",
)
def _attention_backend(spec: Spec) -> Broken | None:
    if spec.layout.attention_backend in _BACKENDS:
        return None
    return Broken(
        f"layout.attention_backend={spec.layout.attention_backend} is unknown",
        "Use one of " + ", ".join(_BACKENDS) + ".",
    )


@rule(
    "window-cp",
    says="with a sliding window, context parallelism divides the query groups of a tensor rank",
    why="context ranks must exchange the sequence for heads: Transformer Engine's ring has no windows",
    source="Transformer Engine 2.9 attention.dot_product_attention.context_parallel, cp_comm_type a2a",
    only_in=Framework.nemo,
)
def _window_cp(spec: Spec) -> Broken | None:
    model, cp, tp = spec.model, spec.layout.cp, spec.layout.tp
    groups = max(model.num_query_groups // tp, 1)
    if not model.window_size or cp == 1 or groups % cp == 0:
        return None
    return Broken(
        f"layout.cp={cp} does not divide the {groups} query groups of a tensor rank, and {model.name} has a sliding "
        f"window of {model.window_size}",
        f"Use layout.cp={nearest_values(cp, divisors(groups))}.",
    )


@rule(
    "gemma-attention",
    says="Gemma 2 and 3 have neither context parallelism nor virtual pipeline stages",
    why="NeMo's own attention and embedding of them take neither",
    source="NeMo 2.7.3 gpt.model.gemma2 (Gemma2DotProductAttention, configure_model) and gemma3 (configure_model)",
    only_in=Framework.nemo,
)
def _gemma_attention(spec: Spec) -> Broken | None:
    layout = spec.layout
    if not spec.model.post_layernorm or (layout.cp == 1 and layout.vpp == 1):
        return None
    key = "cp" if layout.cp > 1 else "vpp"
    return Broken(f"layout.{key}={getattr(layout, key)} with {spec.model.name}", f"Use layout.{key}=1.")


@rule(
    "position-limit",
    says="the sequence is no longer than the positions that the model was trained for",
    why="beyond them, rotary positions are extrapolated",
    source="the model's own config",
    severity=Severity.advice,
)
def _position_limit(spec: Spec) -> Broken | None:
    model, length = spec.model, spec.seq_length
    if model.position_embedding_type is PositionEmbedding.alibi or length <= model.max_position_embeddings:
        return None
    return Broken(
        f"sequence {length} exceeds the {model.max_position_embeddings} positions of {model.name}",
        f"Use layout.seq_length={model.max_position_embeddings} or less.",
    )


SHORT_SEQUENCE = 16_384
"""Tokens below which context parallelism costs more than it saves."""
_RANKS_OF_SHORT_SEQUENCE = 2  # Llama 3 70B is tuned with 2 context ranks for 8,192 tokens (NVIDIA's recipes)


@rule(
    "short-context",
    says="more than two context ranks have sequences of 16,384 tokens or more",
    why="attention over a shorter sequence is too quick to hide the exchange of keys and values, and the matrix "
    "products of a rank become small; tensor or data parallelism costs less",
    source="Llama 3 uses context parallelism for 131,072 tokens only: arXiv:2407.21783 section 3.3.2 and table 4",
    severity=Severity.advice,
)
def _short_context(spec: Spec) -> Broken | None:
    cp, length = spec.layout.cp, spec.seq_length
    if cp <= _RANKS_OF_SHORT_SEQUENCE or length >= SHORT_SEQUENCE:
        return None
    return Broken(f"layout.cp={cp} for a sequence of {length} tokens", "Use layout.cp=1 or 2, and more layout.tp.")
