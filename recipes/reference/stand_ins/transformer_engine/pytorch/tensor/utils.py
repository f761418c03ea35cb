"""What the distributed optimizer does with weights in fp8, which need a GPU."""

from __future__ import annotations

from typing import Any

_REFUSAL = "weights in fp8 need a GPU"


def replace_raw_data(tensor: Any, new_raw_data: Any) -> None:
    raise NotImplementedError(_REFUSAL)


def cast_master_weights_to_fp8(*args: Any, **kwargs: Any) -> None:
    raise NotImplementedError(_REFUSAL)


def post_all_gather_processing(*args: Any, **kwargs: Any) -> None:
    raise NotImplementedError(_REFUSAL)
