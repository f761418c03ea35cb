"""A mixed-precision recipe: the dtype of matrix multiplications, and how low-precision operands are scaled."""

from __future__ import annotations

from dataclasses import dataclass

from slipway.configs.schema.legal import Choice, Count


class Gemm(Choice):
    """The dtype of the operands of matrix multiplications."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp8 = "fp8"
    fp4 = "fp4"


class Fp8Recipe(Choice):
    """Transformer Engine's scaling recipe; the empty word is no scaling, as bf16 and fp32 need none."""

    none = ""
    delayed = "delayed"
    tensorwise = "tensorwise"
    blockwise = "blockwise"
    mxfp8 = "mxfp8"
    nvfp4 = "nvfp4"


class Fp8Format(Choice):
    """The format of scaled operands: ``hybrid`` is e4m3 in the forward pass and e5m2 for gradients."""

    none = ""
    hybrid = "hybrid"
    e4m3 = "e4m3"
    e2m1 = "e2m1"


@dataclass(frozen=True, kw_only=True)
class Precision:
    """A mixed-precision recipe."""

    name: str
    """Name of the file in configs/precision."""

    gemm: Gemm = Gemm.bf16
    """The dtype of the operands of matrix multiplications."""

    fp8_recipe: Fp8Recipe = Fp8Recipe.none
    """Transformer Engine's scaling recipe; empty for bf16 and fp32."""

    fp8_format: Fp8Format = Fp8Format.none
    """The format of scaled operands; empty for bf16 and fp32."""

    fp8_param_gather: bool = False
    """Whether parameters are kept, and gathered over data-parallel ranks, in fp8."""

    first_last_layers_bf16: bool = False
    """Whether the first and last layers compute in bf16."""

    num_layers_at_start_in_bf16: Count = 0
    """With ``first_last_layers_bf16``: how many of the first layers."""

    num_layers_at_end_in_bf16: Count = 0
    """With ``first_last_layers_bf16``: how many of the last layers."""

    grad_reduce_in_fp32: bool = True
    """Whether gradients are accumulated and reduced in fp32; False: in bf16."""

    min_compute_capability: Count = 80
    """The oldest GPU that can run it, as ``gpu.compute_capability``."""

    max_compute_capability: Count = 0
    """The newest GPU that runs it natively, as ``gpu.compute_capability``; 0: no upper limit."""

    source: str = ""
    """Where the recipe comes from."""
