"""Mixtral (arXiv:2401.04088): 8 experts, 2 active, dropless."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slipway.recipes.factory import build, factory

if TYPE_CHECKING:
    import nemo_run as run


@factory
def mixtral_8x7b(**options: Any) -> run.Partial:
    """Mixtral 8x7B: 32 layers, hidden 4,096."""
    return build("mixtral_8x7b", **options)


@factory
def mixtral_8x22b(**options: Any) -> run.Partial:
    """Mixtral 8x22B: 56 layers, hidden 6,144."""
    return build("mixtral_8x22b", **options)


@factory
def mixtral_tiny(**options: Any) -> run.Partial:
    """A toy of Mixtral that trains on a laptop: 4 layers, 4 experts."""
    return build("mixtral_tiny", **options)
