"""The recipes of quantized training, as values: a CPU rank may build them and cannot train with them."""

from __future__ import annotations

import enum
from typing import Any


class Format(enum.Enum):
    """The formats of the forward and of the backward pass."""

    E2M1 = "E2M1"
    E4M3 = "E4M3"
    E5M2 = "E5M2"
    HYBRID = "HYBRID"


class Recipe:
    """A recipe and its settings."""

    def __init__(self, **settings: Any) -> None:
        self.__dict__.update(settings)


class DelayedScaling(Recipe):
    """Scales from a history of the largest absolute values."""


class Float8CurrentScaling(Recipe):
    """Scales from the tensor itself."""


class Float8BlockScaling(Recipe):
    """A scale for each block of 128 values, or of 128 by 128."""


class MXFP8BlockScaling(Recipe):
    """A power-of-two scale for each block of 32 values."""


class NVFP4BlockScaling(Recipe):
    """4-bit values with a scale for each block of 16."""
