"""RMSNorm and LayerNorm, computed in fp32 as the fused kernels do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter


def normalize(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    *,
    layer_norm: bool,
    zero_centered: bool,
) -> torch.Tensor:
    """``x`` normalized over its last dimension; a zero-centered weight is stored less one. Any shape, same dtype."""
    scale = weight.float() + 1 if zero_centered else weight.float()
    wide = x.float()
    if layer_norm:
        offset = None if bias is None else bias.float()
        return torch.nn.functional.layer_norm(wide, (wide.shape[-1],), scale, offset, eps).to(x.dtype)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * scale).to(x.dtype)


class _Norm(torch.nn.Module):
    layer_norm: bool

    def __init__(
        self,
        normalized_shape: Iterable[int] | int | None = None,
        eps: float = 1e-5,
        sequence_parallel: bool | None = None,
        params_dtype: torch.dtype | None = None,
        zero_centered_gamma: bool = False,
        hidden_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        shape = hidden_size if normalized_shape is None else normalized_shape
        dtype, device = params_dtype or kwargs.get("dtype"), kwargs.get("device")
        self.eps, self.zero_centered_gamma = eps, zero_centered_gamma
        make = torch.zeros if zero_centered_gamma else torch.ones
        self.weight = Parameter(make(shape, dtype=dtype, device=device))
        if self.layer_norm:
            self.bias = Parameter(torch.zeros(shape, dtype=dtype, device=device))
        for parameter in self.parameters():
            parameter.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.bias if self.layer_norm else None
        return normalize(
            x, self.weight, bias, self.eps, layer_norm=self.layer_norm, zero_centered=self.zero_centered_gamma
        )


class RMSNorm(_Norm):
    """Root mean square normalization (arXiv:1910.07467)."""

    layer_norm = False


class LayerNorm(_Norm):
    """Layer normalization (arXiv:1607.06450)."""

    layer_norm = True
