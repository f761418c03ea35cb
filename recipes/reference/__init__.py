"""Megatron-Core on CPU ranks over Gloo: what a machine without a GPU needs to run the real training loop.

``emulation`` answers the CUDA calls. ``stand_ins`` is a package of its own that ``make setup`` installs: Transformer
Engine's modules in plain PyTorch, so that CPU ranks run the layers that NeMo builds for GPUs. Neither is imported where
a GPU is.
"""

import importlib.util

from slipway.configs import Refusal


def require_stand_ins() -> None:
    """Require that this environment has the stand-ins, before Megatron-Core is used without them.

    Raises:
        Refusal: it has none.
    """
    if importlib.util.find_spec("transformer_engine") is None:
        raise Refusal(
            "CPU ranks need Slipway's stand-ins for Transformer Engine, and this environment has none",
            "make setup installs them in a checkout; elsewhere: pip install CHECKOUT/recipes/reference/stand_ins.",
        )
