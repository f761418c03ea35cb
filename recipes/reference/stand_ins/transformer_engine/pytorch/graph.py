"""CUDA graphs, which only a GPU captures."""

from __future__ import annotations

from typing import Any

_REFUSAL = "CUDA graphs need a GPU"


def make_graphed_callables(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError(_REFUSAL)


def save_fp8_tensors(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError(_REFUSAL)


def restore_fp8_tensors(*args: Any, **kwargs: Any) -> None:
    raise NotImplementedError(_REFUSAL)


def set_capture_start() -> None:
    raise NotImplementedError(_REFUSAL)


def set_capture_end() -> None:
    raise NotImplementedError(_REFUSAL)
