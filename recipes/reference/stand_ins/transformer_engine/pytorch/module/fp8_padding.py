"""Padding of each expert's rows to the multiple that quantized products need. A CPU rank quantizes nothing."""

from __future__ import annotations

import torch


class _Unchanged(torch.nn.Module):
    def __init__(self, num_gemms: int, align_size: int | None = None) -> None:
        super().__init__()
        self.num_gemms, self.align_size = num_gemms, align_size


class Fp8Padding(_Unchanged):
    """Rows to padded rows, and their counts."""

    def forward(self, inp: torch.Tensor, m_splits: list[int]) -> tuple[torch.Tensor, list[int]]:
        raise NotImplementedError("rows are padded for fp8 only, which needs a GPU")


class Fp8Unpadding(_Unchanged):
    """Padded rows back to rows."""

    def forward(self, inp: torch.Tensor, m_splits: list[int]) -> torch.Tensor:
        raise NotImplementedError("rows are padded for fp8 only, which needs a GPU")
