"""What each layer of a decoder is made of, derived from the few numbers that decide it."""

from __future__ import annotations

import functools
from typing import NamedTuple

from slipway.configs.schema.legal import Choice


class Mixer(Choice):
    """The part of a layer that mixes information between tokens."""

    attention = "attention"
    mamba = "mamba"
    none = "none"


class FeedForward(Choice):
    """The part of a layer that transforms each token on its own."""

    dense = "dense"
    experts = "experts"
    none = "none"


class LayerKind(NamedTuple):
    """What a layer is made of. A layer of a hybrid has one of the two parts; any other layer has both."""

    mixer: Mixer = Mixer.attention
    feed_forward: FeedForward = FeedForward.dense
    full_keys: bool = True
    """False for sliding-window attention."""

    @property
    def parts(self) -> int:
        """Number of blocks, each with a norm before it and a residual connection around it."""
        return (self.mixer is not Mixer.none) + (self.feed_forward is not FeedForward.none)


class LayerShape(NamedTuple):
    """The fields of a model that decide the kind of each of its layers."""

    num_layers: int
    pattern: str
    """``Model.hybrid_override_pattern``."""
    first_experts: int
    """0-based index of the first layer that may hold experts."""
    moe_every: int
    window_size: int
    window_every: int


HYBRID_SYMBOLS = {
    "M": LayerKind(Mixer.mamba, FeedForward.none),
    "*": LayerKind(Mixer.attention, FeedForward.none),
    "-": LayerKind(Mixer.none, FeedForward.dense),
    "E": LayerKind(Mixer.none, FeedForward.experts),
}
"""Megatron-Core's symbols for the layers of a hybrid (megatron/core/ssm/mamba_hybrid_layer_allocation.py)."""


@functools.lru_cache(maxsize=4096)
def layer_kinds(shape: LayerShape) -> tuple[LayerKind, ...]:
    """The kind of every layer, in order."""
    if shape.pattern:
        return tuple(HYBRID_SYMBOLS[symbol] for symbol in shape.pattern)

    def kind(i: int) -> LayerKind:
        experts = i >= shape.first_experts and (i + 1) % shape.moe_every == 0
        full_keys = not shape.window_size or (shape.window_every > 1 and (i + 1) % shape.window_every == 0)
        return LayerKind(Mixer.attention, FeedForward.experts if experts else FeedForward.dense, full_keys)

    return tuple(map(kind, range(shape.num_layers)))
