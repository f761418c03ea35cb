"""Quantized tensors. None exists on a CPU rank: ``isinstance`` is always false."""

from .float8_tensor import Float8Tensor, QuantizedTensor

__all__ = ["Float8Tensor", "QuantizedTensor"]
