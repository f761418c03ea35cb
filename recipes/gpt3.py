"""GPT-3 (arXiv:2005.14165): learned positions, LayerNorm, biases, tied embeddings, 2,048 tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slipway.recipes.factory import build, factory

if TYPE_CHECKING:
    import nemo_run as run


@factory
def gpt3_175b(**options: Any) -> run.Partial:
    """GPT-3 175B: 96 layers, hidden 12,288, 3.2M tokens a step."""
    return build("gpt3_175b", **options)
