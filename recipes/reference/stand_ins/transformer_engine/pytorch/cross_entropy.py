"""Cross-entropy over a vocabulary that the tensor-parallel ranks share."""

from __future__ import annotations

from typing import Any

import torch


def parallel_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float = 0.0,
    reduce: bool = False,
    group: Any = None,
    ignore_idx: int = -100,
    *args: Any,
) -> torch.Tensor:
    """Losses [s, b] of logits [s, b, v], by Megatron-Core's own unfused function."""
    from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy

    if reduce:
        raise NotImplementedError("CPU ranks keep the loss of each token")
    return vocab_parallel_cross_entropy(logits, labels, smoothing)
