"""DeepSeek-V3 (arXiv:2412.19437): multi-latent attention, 256 experts of which 8 are active, one shared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slipway.recipes.factory import build, factory

if TYPE_CHECKING:
    import nemo_run as run


@factory
def deepseek_v3(**options: Any) -> run.Partial:
    """DeepSeek-V3 671B: 61 layers, the first 3 dense."""
    return build("deepseek_v3", **options)
