"""What a number format costs: bytes of a weight, an activation, a gradient, an optimizer state, a quantized element.

A :class:`Numerics` holds what a precision (configs/precision) and an optimizer make of the formats. No other module of
the planner compares the names of formats or writes down the size of an element.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from slipway.configs import Gpu, Spec
from slipway.configs.schema import Moments

FP32_BYTES = 4.0
BF16_BYTES = 2.0
# Two moments in fp32, and the fp32 master weight beside them where the model's own weight is narrower.
_MOMENTS_BYTES = 2 * FP32_BYTES
_MASTER_BYTES = FP32_BYTES


class Dtype(Enum):
    """The dtype of a matrix product's operands."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp8 = "fp8"
    fp4 = "fp4"

    __hash__ = object.__hash__  # members are singletons; Enum hashes the name, in Python

    @property
    def element_bytes(self) -> float:
        """Bytes of one operand element, its share of a block's scale included."""
        return _ELEMENT_BYTES[self]

    @property
    def output_bytes(self) -> float:
        """Bytes of one element that the product writes: quantized operands make bf16 outputs."""
        return FP32_BYTES if self is Dtype.fp32 else BF16_BYTES

    @property
    def quantized(self) -> bool:
        """Whether operands are cast from bf16 and carry scales."""
        return self in (Dtype.fp8, Dtype.fp4)


_ELEMENT_BYTES = {
    Dtype.fp32: FP32_BYTES,
    Dtype.bf16: BF16_BYTES,
    Dtype.fp8: 1.0,
    Dtype.fp4: 0.5 + 1 / 16,  # NVFP4 has a one-byte scale for each block of 16 elements (arXiv:2509.25149, section 2)
}


class Scaling(Enum):
    """How quantized operands are scaled: Transformer Engine's recipes."""

    none = ""
    delayed = "delayed"
    tensorwise = "tensorwise"
    blockwise = "blockwise"
    mxfp8 = "mxfp8"
    nvfp4 = "nvfp4"


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """The formats of one run."""

    gemm: Dtype = Dtype.bf16
    scaling: Scaling = Scaling.none
    quantized_weights: bool = False  # the model holds no bf16 weights beside the quantized ones
    reduce_in_fp32: bool = True
    bf16_moments: bool = False  # of Adam, by Megatron-Core's precision-aware optimizer

    @property
    def activation_bytes(self) -> float:
        """Of an element between matrix products: the residual stream, a norm's output, attention's operands."""
        return FP32_BYTES if self.gemm is Dtype.fp32 else BF16_BYTES

    @property
    def saved_input_bytes(self) -> float:
        """Of an element of the input that a linear layer keeps for its weight gradient."""
        return self.gemm.element_bytes if self.gemm.quantized else self.activation_bytes

    @property
    def cast_bytes(self) -> float:
        """Read and written to quantize one element: the tensor and its transpose; 0 where nothing is quantized."""
        if not self.gemm.quantized:
            return 0.0
        # tensorwise scaling, and the first level of NVFP4's, reads the tensor once more for its largest magnitude
        passes = 2 if self.scaling is Scaling.tensorwise or self.gemm is Dtype.fp4 else 1
        return passes * BF16_BYTES + 2 * self.gemm.element_bytes

    @property
    def weight_bytes(self) -> float:
        """Of a parameter as the model holds it, its quantized copies included."""
        if not self.gemm.quantized:
            return self.activation_bytes
        copies = 2 * self.gemm.element_bytes  # the quantized weight and its transpose
        return copies + (0.0 if self.quantized_weights else BF16_BYTES)

    @property
    def checkpoint_weight_bytes(self) -> float:
        """Of a parameter in a checkpoint, and in the model of an unquantized run."""
        return self.activation_bytes

    @property
    def gathered_weight_bytes(self) -> float:
        """Of a parameter that data-parallel ranks gather; mxfp8 weights are quantized after the gather."""
        if self.quantized_weights and self.gemm is Dtype.fp8 and self.scaling is not Scaling.mxfp8:
            return self.gemm.element_bytes
        return self.activation_bytes

    @property
    def reduced_gradient_bytes(self) -> float:
        """Of a gradient that data-parallel ranks reduce, in the buffer that micro-batches accumulate into."""
        return FP32_BYTES if self.reduce_in_fp32 or self.gemm is Dtype.fp32 else BF16_BYTES

    @property
    def state_bytes(self) -> float:
        """Of Adam's states of one parameter: two moments, and a master weight where the weight itself is not fp32."""
        moments = 2 * BF16_BYTES if self.bf16_moments else _MOMENTS_BYTES
        return moments + (0.0 if self.gemm is Dtype.fp32 else _MASTER_BYTES)

    @property
    def adam_bytes(self) -> float:
        """Read and written to update one parameter by Adam.

        It reads the gradient, two moments and the master weight, and writes the last three; then it writes the model's
        weight, unless that is the master weight itself.
        """
        moments = 2 * BF16_BYTES if self.bf16_moments else _MOMENTS_BYTES
        gradient_and_master = FP32_BYTES + 2 * FP32_BYTES
        return gradient_and_master + 2 * moments + (0.0 if self.gemm is Dtype.fp32 else BF16_BYTES)

    @property
    def unquantized(self) -> Numerics:
        """The formats of the logits, and of layers that a quantized run keeps in bf16."""
        return replace(self, gemm=Dtype.bf16, scaling=Scaling.none) if self.gemm.quantized else self


def numerics_of(spec: Spec) -> Numerics:
    """The formats of a spec's precision and optimizer."""
    precision = spec.precision
    gemm = Dtype(precision.gemm)
    return Numerics(
        gemm=gemm,
        scaling=Scaling(precision.fp8_recipe) if gemm.quantized else Scaling.none,
        quantized_weights=precision.fp8_param_gather and not spec.task.lora_rank,  # frozen weights are not gathered
        reduce_in_fp32=precision.grad_reduce_in_fp32,
        bf16_moments=spec.optim.precision_aware and spec.optim.moments is Moments.bf16,
    )


def dense_peak_tflops(gpu: Gpu, dtype: Dtype) -> float:
    """Dense datasheet peak of the GPU in TFLOP/s; 0 where the part has no such units. fp32 operands run as TF32."""
    match dtype:
        case Dtype.fp32:
            return gpu.tf32_tflops
        case Dtype.bf16:
            return gpu.bf16_tflops
        case Dtype.fp8:
            return gpu.fp8_tflops
        case Dtype.fp4:
            return gpu.fp4_tflops
