"""Which of Hugging Face's tensors make up each of Megatron-Core's: the parts of a family's table.

A checkpoint of Megatron-Core holds each tensor whole, whatever layout wrote it. Layers that are all alike are stacked
along its first axis; experts along the next. Rows of the fused projections: the query, key and value heads of one group
after another (linear_qkv); all gates, then all up-projections (linear_fc1).

In names, ``{i}`` is the layer and ``{e}`` the expert.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from typing import TYPE_CHECKING, Any

from slipway.configs import Model

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


@dataclass(frozen=True)
class Fusion:
    """How tensors of Hugging Face become one of Megatron-Core, and back. Works on meta tensors too."""

    join: Callable[[list[Tensor], Model], Tensor]
    split: Callable[[Tensor, Model], list[Tensor]]


def _join_groups(parts: list[Tensor], model: Model) -> Tensor:
    import torch

    rest = parts[0].shape[1:]
    grouped = [part.reshape(model.num_query_groups, -1, model.kv_channels, *rest) for part in parts]
    return torch.cat(grouped, dim=1).reshape(-1, *rest)


def _split_groups(whole: Tensor, model: Model) -> list[Tensor]:
    rest, queries = whole.shape[1:], model.num_attention_heads // model.num_query_groups
    grouped = whole.reshape(model.num_query_groups, queries + 2, model.kv_channels, *rest)
    return [part.reshape(-1, *rest) for part in grouped.split((queries, 1, 1), dim=1)]


def _stack(parts: list[Tensor], model: Model) -> Tensor:
    import torch

    return torch.cat(parts)


def _join_packed(parts: list[Tensor], model: Model) -> Tensor:
    queries, keys = (model.kv_channels * count for count in (model.num_attention_heads, model.num_query_groups))
    return _join_groups(list(parts[0].split((queries, keys, keys))), model)


SAME = Fusion(lambda parts, model: parts[0], lambda whole, model: [whole])
GROUPS = Fusion(_join_groups, _split_groups)
"""Queries, keys and values, interleaved by query group."""
PACKED = Fusion(_join_packed, lambda whole, model: [_stack(_split_groups(whole, model), model)])
"""The same, of which Hugging Face has one tensor: all queries, then all keys, then all values."""
TURNED = Fusion(lambda parts, model: parts[0].T, lambda whole, model: [whole.T])
"""One matrix and its transpose."""
COPIES = Fusion(lambda parts, model: parts[0], lambda whole, model: [whole] * 2)
"""One tensor that Hugging Face has twice."""
HALVES = Fusion(_stack, lambda whole, model: list(whole.chunk(2)))
"""One tensor after the other, of equal sizes."""


class Layers(Enum):
    """Which layers have a tensor."""

    every = "every"
    dense = "dense"
    experts = "experts"


DECODER, PREDICTION = "decoder.layers.{i}.", "mtp.layers.{i}."
"""How Megatron-Core's names begin in decoder layers, and in layers for multi-token prediction.

Hugging Face numbers the second after the first.
"""


@dataclass(frozen=True)
class Rule:
    """One line of a family's table.

    Attributes:
        ours: Megatron-Core's name, without the ``module.`` that NeMo puts in front.
        shape: its sizes, each a key of :func:`sizes`.
        theirs: Hugging Face's names. Where only ``ours`` names an expert, theirs has all experts along its first axis.
        keeps_type: whether it has its own type, which ``--dtype`` does not change.
    """

    ours: str
    shape: str
    theirs: tuple[str, ...]
    fusion: Fusion = SAME
    layers: Layers = Layers.every
    keeps_type: bool = False


@dataclass(frozen=True)
class Part:
    """One of Hugging Face's tensors, or one expert's part of it."""

    name: str
    shape: tuple[int, ...]
    expert: int | None = None  # of a tensor that has all experts along its first axis


@dataclass(frozen=True)
class Piece:
    """One of Megatron-Core's tensors, of one layer and one expert.

    Attributes:
        key: its name in the checkpoint.
        index: where it lies along the axes that the checkpoint stacks: layer, expert.
        counts: the lengths of these axes.
        shape: its own shape.
        parts: what it is made of.
    """

    key: str
    index: tuple[int, ...]
    counts: tuple[int, ...]
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    rule: Rule

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def sizes(model: Model) -> dict[str, int]:
    """The sizes that tables name."""
    heads, width = model.num_attention_heads, model.kv_channels
    with_position = model.qk_head_dim + model.qk_pos_emb_head_dim
    return {
        "vocab": model.vocab_size,
        "positions": model.max_position_embeddings,
        "hidden": model.hidden_size,
        "2hidden": 2 * model.hidden_size,
        "ffn": model.ffn_hidden_size,
        "2ffn": 2 * model.ffn_hidden_size,
        "head": width,
        "attention_heads": heads,
        "heads": heads * width,
        "qkv": (heads + 2 * model.num_query_groups) * width,
        "experts": model.num_moe_experts,
        "expert": model.moe_ffn_hidden_size,
        "2expert": 2 * model.moe_ffn_hidden_size,
        "shared": model.moe_shared_expert_intermediate_size,
        "2shared": 2 * model.moe_shared_expert_intermediate_size,
        "latent_q": model.q_lora_rank,
        "latent_kv": model.kv_lora_rank,
        "latent_kv_down": model.kv_lora_rank + model.qk_pos_emb_head_dim,
        "latent_q_up": heads * with_position,
        "latent_kv_up": heads * (model.qk_head_dim + model.v_head_dim),
        "values": heads * model.v_head_dim,
    }


def pieces(rules: Iterable[Rule], model: Model) -> Iterator[Piece]:
    """Every tensor of the model, in the order of the rules; those of one layer come together, as do an expert's."""
    table = _Table(model)
    for kind, group in groupby(rules, key=_kind):
        same = list(group)
        if not kind:
            yield from (table.piece(rule, None, None) for rule in same)
        else:
            for layer in range(model.num_layers if kind == DECODER else model.mtp_num_layers):
                yield from table.of_layer(same, layer, decoder=kind == DECODER)


def _kind(rule: Rule) -> str:
    return next((kind for kind in (DECODER, PREDICTION) if rule.ours.startswith(kind)), "")


class _Table:
    """Makes pieces of one model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.sizes = sizes(model)
        # Megatron-Core names layers one by one where they are of more than one kind (TransformerBlock).
        self.stacked = not (model.is_moe and model.has_dense_layers)

    def of_layer(self, rules: list[Rule], layer: int, *, decoder: bool) -> Iterator[Piece]:
        """The tensors of a layer, counted from 0 among its like; the last decoder layer says what others are."""
        has_experts = self.model.layer_is_moe(layer if decoder else self.model.num_layers - 1)
        kind = Layers.experts if has_experts else Layers.dense
        here = [rule for rule in rules if rule.layers in (Layers.every, kind)]
        for of_expert, group in groupby(here, key=lambda rule: "{e}" in rule.ours):
            same = list(group)
            for expert in range(self.model.num_moe_experts) if of_expert else [None]:
                yield from (self.piece(rule, layer, expert) for rule in same)

    def piece(self, rule: Rule, layer: int | None, expert: int | None) -> Piece:
        index, counts = [], []
        key = rule.ours
        decoder = _kind(rule) == DECODER
        if decoder and self.stacked and layer is not None:
            key = key.replace("{i}.", "")
            index.append(layer)
            counts.append(self.model.num_layers)
        if expert is not None:
            key = key.replace("{e}.", "")
            index.append(expert)
            counts.append(self.model.num_moe_experts)
        shape = tuple(self.sizes[name] for name in rule.shape.split())
        theirs = layer if layer is None or decoder else layer + self.model.num_layers
        parts = tuple(
            Part(
                name.replace("{i}", str(theirs)).replace("{e}", str(expert)),
                shape_of_part,
                None if "{e}" in name else expert,
            )
            for name, shape_of_part in zip(rule.theirs, self._shapes_of_parts(rule, shape), strict=True)
        )
        return Piece("module." + key.replace("{i}", str(layer)), tuple(index), tuple(counts), shape, parts, rule)

    def _shapes_of_parts(self, rule: Rule, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        if rule.fusion is SAME or rule.fusion is COPIES:
            return [shape] * len(rule.theirs)
        import torch

        return [tuple(part.shape) for part in rule.fusion.split(torch.empty(shape, device="meta"), self.model)]
