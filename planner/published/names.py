"""What published tables call models, GPUs and precisions, translated by configs/aliases.yaml into our names."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from slipway import configs
from slipway.configs import Model
from slipway.configs.files import ROOT, parse_yaml
from slipway.configs.schema import BLACKWELL, Activation, Normalization, PositionEmbedding
from slipway.planner.published.table import in_notes, whole_number

GPT_VOCABULARY = 51_200  # GPT-2's 50,257 tokens as Megatron-LM's papers pad them
BLOOM_VOCABULARY = 250_880  # bigscience/bloom's config.json
GPT_SEQUENCE_LENGTH = 2_048  # of GPT-3 (arXiv:2005.14165), where a row does not state its own
USUAL_HEAD_WIDTH = 128  # of a model described without its number of heads
GPT_FFN_RATIO = 4  # feed-forward width over hidden size of a GPT without a gated unit
_NOT_THE_NAME = r"\(.*?\)|\b(LoRA|SFT|PEFT|\d+-node)\b"  # what was done with a model, not what it is


@functools.cache
def _aliases() -> dict[str, Any]:
    return parse_yaml(ROOT / "aliases.yaml")


def plain(name: str) -> str:
    """A name in lower-case letters and digits only, without what is in brackets."""
    return re.sub(r"[^a-z0-9]", "", re.sub(_NOT_THE_NAME, "", name, flags=re.IGNORECASE).lower())


def find_gpu(row: Mapping[str, str]) -> str:
    """The name in configs/gpu of the GPU that a row names.

    Raises:
        ValueError: the GPU is unknown.
    """
    named = row.get("gpu", "")
    gpu: str | None = _aliases()["gpu"].get(plain(named))
    if gpu is None:
        raise ValueError(f"unknown GPU {named!r}; {configs.nearest(plain(named), configs.gpu_names())}")
    return gpu


def find_precision(row: Mapping[str, str], gpu: str) -> str:
    """The name in configs/precision of the precision that a row names.

    Raises:
        ValueError: the precision is unknown.
    """
    precision: str | None = _aliases()["precision"].get(plain(row.get("precision", "")))
    if precision is None:
        raise ValueError(f"unknown precision {row.get('precision')!r}")
    if precision.startswith("fp8_delayed") and configs.gpu(gpu).compute_capability >= BLACKWELL:
        return "fp8_current"  # no published run on Blackwell uses delayed scaling
    return precision


def find_model(row: Mapping[str, str]) -> Model:
    """The model that a row names, or a GPT of the row's hidden size, layers and heads.

    Raises:
        ValueError: the name is unknown and the columns do not describe a model.
    """
    name = row.get("model", "")
    known = known_model(name)
    hidden, layers, heads = (whole_number(row, key, 0) or in_notes(row, key) for key in ("hidden", "layers", "heads"))
    if hidden and layers and not heads:
        heads = hidden // USUAL_HEAD_WIDTH
    if known:
        model = configs.model(known)
        return replace(model, num_layers=layers) if layers and layers != model.num_layers and not hidden else model
    if not (hidden and layers and heads):
        raise ValueError(f"unknown model {name!r} without hidden, layers and heads")
    if hidden % heads:
        raise ValueError(f"hidden {hidden} is not a multiple of heads {heads}")
    return _described_model(row, hidden, layers, heads)


def known_model(name: str) -> str:
    """The name in configs/model of a published model name; empty if there is none."""
    by_plain_name = {plain(candidate): candidate for candidate in configs.model_names()}
    alias: str | None = _aliases()["model"].get(plain(name))
    return alias or by_plain_name.get(plain(name), "")


def _described_model(row: Mapping[str, str], hidden: int, layers: int, heads: int) -> Model:
    """A GPT, or a Llama where the row states grouped queries and a feed-forward narrower than a GPT's."""
    groups = whole_number(row, "kv_heads", heads)
    ffn = whole_number(row, "ffn", 0)
    gated = 0 < ffn < GPT_FFN_RATIO * hidden and groups < heads
    default_vocabulary = BLOOM_VOCABULARY if "250k" in row.get("notes", "") else GPT_VOCABULARY
    return Model(
        name=plain(row.get("model", "")) or "gpt",
        family="gpt3",
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn or GPT_FFN_RATIO * hidden,
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=hidden // heads,
        vocab_size=whole_number(row, "vocab", 0) or default_vocabulary,
        seq_length=whole_number(row, "seq_len", GPT_SEQUENCE_LENGTH),
        max_position_embeddings=1 << 30,  # a row does not state it; no limit
        gated_linear_unit=gated,
        activation_func=Activation.silu if gated else Activation.gelu,
        normalization=Normalization.RMSNorm if gated else Normalization.LayerNorm,
        add_bias_linear=not gated,
        add_qkv_bias=not gated,
        position_embedding_type=PositionEmbedding.rope if gated else PositionEmbedding.learned_absolute,
        share_embeddings_and_output_weights=not gated,
    )
