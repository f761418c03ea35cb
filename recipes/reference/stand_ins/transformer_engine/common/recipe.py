"""The recipes of quantized training, as values: a CPU rank may build them and cannot train with them.

As in Transformer Engine, they are dataclasses of pydantic, which ignores arguments that they do not have: Megatron-Core
passes such arguments to DelayedScaling.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from pydantic.dataclasses import dataclass


class Format(enum.Enum):
    """The formats of the forward and of the backward pass."""

    E2M1 = "E2M1"
    E4M3 = "E4M3"
    E5M2 = "E5M2"
    HYBRID = "HYBRID"


class Recipe:
    """How tensors are quantized."""


@dataclass
class DelayedScaling(Recipe):
    """Scales from a history of the largest absolute values."""

    margin: int = 0
    fp8_format: Format = Format.HYBRID
    amax_history_len: int = 1024
    amax_compute_algo: str | Callable = "max"
    scaling_factor_compute_algo: Callable | None = None
    reduce_amax: bool = True
    fp8_dpa: bool = False
    fp8_mha: bool = False


@dataclass
class Float8CurrentScaling(Recipe):
    """Scales from the tensor itself."""

    use_power_2_scales: bool = False
    fp8_format: Format = Format.HYBRID
    fp8_dpa: bool = False
    fp8_mha: bool = False


@dataclass
class Float8BlockScaling(Recipe):
    """A scale for each block of 128 values, or of 128 by 128."""

    use_f32_scales: bool = False
    fp8_format: Format = Format.E4M3
    fp8_dpa: bool = False
    fp8_mha: bool = False


@dataclass
class MXFP8BlockScaling(Recipe):
    """A power-of-two scale for each block of 32 values."""

    margin: int = 0
    fp8_format: Format = Format.E4M3
    fp8_dpa: bool = False
    fp8_mha: bool = False


@dataclass
class NVFP4BlockScaling(Recipe):
    """4-bit values with a scale for each block of 16."""

    fp4_format: Format = Format.E2M1
    disable_rht: bool = False
    disable_stochastic_rounding: bool = False
