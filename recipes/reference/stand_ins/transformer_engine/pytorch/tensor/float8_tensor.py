"""Tensors in fp8."""


class QuantizedTensor:
    """A tensor of quantized values and their scales."""


class Float8Tensor(QuantizedTensor):
    """With one scale a tensor."""
