"""Linear layers and norms."""

from .base import TransformerEngineBaseModule
from .fp8_padding import Fp8Padding, Fp8Unpadding
from .linear import GroupedLinear, LayerNormLinear, Linear
from .norm import LayerNorm, RMSNorm

__all__ = [
    "Fp8Padding",
    "Fp8Unpadding",
    "GroupedLinear",
    "LayerNorm",
    "LayerNormLinear",
    "Linear",
    "RMSNorm",
    "TransformerEngineBaseModule",
]
