"""The PyTorch modules of Transformer Engine that Megatron-Core and NeMo use."""

import torch

from . import (
    attention,
    cpu_offload,
    cross_entropy,
    distributed,
    float8_tensor,
    fp8,
    module,
    ops,
    optimizers,
    permutation,
    router,
    tensor,
)
from .attention import DotProductAttention
from .cpu_offload import get_cpu_offload_context
from .distributed import CudaRNGStatesTracker, checkpoint
from .fp8 import fp8_autocast, fp8_model_init
from .module import Fp8Padding, Fp8Unpadding, GroupedLinear, LayerNorm, LayerNormLinear, Linear, RMSNorm

__all__ = [
    "CudaRNGStatesTracker",
    "DotProductAttention",
    "Fp8Padding",
    "Fp8Unpadding",
    "GroupedLinear",
    "LayerNorm",
    "LayerNormLinear",
    "LayerNormMLP",
    "Linear",
    "RMSNorm",
    "TransformerLayer",
    "attention",
    "checkpoint",
    "cpu_offload",
    "cross_entropy",
    "distributed",
    "float8_tensor",
    "fp8",
    "fp8_autocast",
    "fp8_model_init",
    "get_cpu_offload_context",
    "module",
    "ops",
    "optimizers",
    "permutation",
    "router",
    "tensor",
]


class LayerNormMLP(torch.nn.Module):
    """Norm and feed-forward in one module; only layers that are one Transformer Engine module as a whole have it."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError("LayerNormMLP is not available on CPU ranks")


class TransformerLayer(torch.nn.Module):
    """A whole layer in one module; only NeMo's full-layer specs build it."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError("TransformerLayer is not available on CPU ranks")
