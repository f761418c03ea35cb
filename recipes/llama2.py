"""Llama 2 (arXiv:2307.09288): multi-head attention up to 13B, grouped queries at 70B, 4,096 tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slipway.recipes.factory import build, factory

if TYPE_CHECKING:
    import nemo_run as run


@factory
def llama2_7b(**options: Any) -> run.Partial:
    """Llama 2 7B: 32 layers, hidden 4,096, 4M tokens a step."""
    return build("llama2_7b", **options)


@factory
def llama2_13b(**options: Any) -> run.Partial:
    """Llama 2 13B: 40 layers, hidden 5,120, 4M tokens a step."""
    return build("llama2_13b", **options)


@factory
def llama2_70b(**options: Any) -> run.Partial:
    """Llama 2 70B: 80 layers, hidden 8,192, 8 query groups, 4M tokens a step."""
    return build("llama2_70b", **options)
