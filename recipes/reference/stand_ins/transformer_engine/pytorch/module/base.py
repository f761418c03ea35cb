"""What every module of Transformer Engine has in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


class TransformerEngineBaseModule(torch.nn.Module):
    """A module whose extra state, the history of quantization, is always empty."""

    def __init__(self) -> None:
        super().__init__()
        self.fp8 = self.fp8_calibration = self.fp8_initialized = False
        self.fp8_meta: dict[str, Any] = {"fp8_checkpoint": False, "recipe": None}
        self.tp_group: Any = None

    def init_fp8_metadata(self, num_gemms: int = 1) -> None:
        """Nothing is quantized."""

    def set_tensor_parallel_group(self, tp_group: Any) -> None:
        self.tp_group = tp_group

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor | None) -> None:
        if state is not None and state.numel():
            raise NotImplementedError("a CPU rank cannot continue training in fp8: the checkpoint has its scales")


@contextlib.contextmanager
def fork_rng(get_rng_state_tracker: Any, name: str | None) -> Iterator[None]:
    """Draw from the tracker's state of that name, where there is a tracker."""
    if get_rng_state_tracker is None:
        yield
        return
    tracker = get_rng_state_tracker()
    with tracker.fork(name) if name else tracker.fork():
        yield


def get_dummy_wgrad(shape: list[int], dtype: torch.dtype, zero: bool = False) -> torch.Tensor:
    """A tensor in place of a weight gradient that was accumulated elsewhere."""
    return (torch.zeros if zero else torch.empty)(shape, dtype=dtype)


def get_workspace() -> None:
    """cuBLAS's workspace."""
