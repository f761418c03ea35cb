"""The switches of quantized training: off, and refused when they are turned on for a computation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

_REFUSAL = "training in fp8 needs a GPU"


class FP8GlobalStateManager:
    """The state that quantized layers share."""

    @staticmethod
    def is_fp8_enabled() -> bool:
        return False

    @staticmethod
    def reset() -> None:
        """Nothing is kept."""

    @staticmethod
    def set_skip_fp8_weight_update_tensor(skip: bool) -> None:
        """Nothing is quantized."""


@contextlib.contextmanager
def fp8_autocast(
    enabled: bool = True,
    calibrating: bool = False,
    fp8_recipe: Any = None,
    fp8_group: Any = None,
    _graph: bool = False,
) -> Iterator[None]:
    """Compute in the recipe's format within the context."""
    if enabled:
        raise NotImplementedError(_REFUSAL)
    yield


@contextlib.contextmanager
def fp8_model_init(
    enabled: bool = True, recipe: Any = None, preserve_high_precision_init_val: bool = False
) -> Iterator[None]:
    """Keep the weights that are made within the context in fp8. Here they stay in their own type."""
    yield


def check_fp8_support() -> tuple[bool, str]:
    return False, _REFUSAL
