"""Nemotron-4 (arXiv:2402.16819, arXiv:2406.11704): squared ReLU, LayerNorm, vocabulary 256,000."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slipway.recipes.factory import build, factory

if TYPE_CHECKING:
    import nemo_run as run


@factory
def nemotron4_15b(**options: Any) -> run.Partial:
    """Nemotron-4 15B: 32 layers, hidden 6,144."""
    return build("nemotron4_15b", **options)


@factory
def nemotron4_340b(**options: Any) -> run.Partial:
    """Nemotron-4 340B: 96 layers, hidden 18,432, 9.4M tokens a step."""
    return build("nemotron4_340b", **options)
