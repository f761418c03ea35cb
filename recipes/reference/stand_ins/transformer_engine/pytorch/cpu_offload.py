"""Activations in host memory. On a CPU rank they are there already."""

from __future__ import annotations

import contextlib
from typing import Any


def get_cpu_offload_context(
    enabled: bool = False,
    num_layers: int = 1,
    model_layers: int = 1,
    offload_activations: bool = True,
    offload_weights: bool = False,
    double_buffering: bool = False,
) -> tuple[Any, Any]:
    """A context for a layer's forward pass, and a function that marks where a layer ends."""
    return contextlib.nullcontext(), lambda tensor: tensor
