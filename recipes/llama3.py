"""Llama 3, 3.1 and 3.2 (arXiv:2407.21783): grouped queries, vocabulary 128,256, 8,192 tokens in pretraining."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slipway.recipes.factory import build, factory

if TYPE_CHECKING:
    import nemo_run as run


@factory
def llama3_8b(**options: Any) -> run.Partial:
    """Llama 3 8B: 32 layers, hidden 4,096, 8 query groups."""
    return build("llama3_8b", **options)


@factory
def llama3_70b(**options: Any) -> run.Partial:
    """Llama 3 70B: 80 layers, hidden 8,192."""
    return build("llama3_70b", **options)


@factory
def llama31_8b(**options: Any) -> run.Partial:
    """Llama 3.1 8B: Llama 3 8B with scaled RoPE."""
    return build("llama31_8b", **options)


@factory
def llama31_70b(**options: Any) -> run.Partial:
    """Llama 3.1 70B: Llama 3 70B with scaled RoPE."""
    return build("llama31_70b", **options)


@factory
def llama31_405b(**options: Any) -> run.Partial:
    """Llama 3.1 405B: 126 layers, hidden 16,384."""
    return build("llama31_405b", **options)


@factory
def llama32_1b(**options: Any) -> run.Partial:
    """Llama 3.2 1B: 16 layers, hidden 2,048, tied embeddings."""
    return build("llama32_1b", **options)


@factory
def llama32_3b(**options: Any) -> run.Partial:
    """Llama 3.2 3B: 28 layers, hidden 3,072, tied embeddings."""
    return build("llama32_3b", **options)


@factory
def llama3_tiny(**options: Any) -> run.Partial:
    """A toy of Llama 3 that trains on a laptop: 4 layers, hidden 192."""
    return build("llama3_tiny", **options)
