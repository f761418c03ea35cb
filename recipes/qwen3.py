"""Qwen3 (arXiv:2505.09388): normalised queries and keys, dense and 128-expert models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slipway.recipes.factory import build, factory

if TYPE_CHECKING:
    import nemo_run as run


@factory
def qwen3_8b(**options: Any) -> run.Partial:
    """Qwen3 8B: 36 layers, hidden 4,096."""
    return build("qwen3_8b", **options)


@factory
def qwen3_30b_a3b(**options: Any) -> run.Partial:
    """Qwen3 30B-A3B: 48 layers, 128 experts, 8 active."""
    return build("qwen3_30b_a3b", **options)


@factory
def qwen3_235b_a22b(**options: Any) -> run.Partial:
    """Qwen3 235B-A22B: 94 layers, 128 experts, 8 active."""
    return build("qwen3_235b_a22b", **options)
