"""What the levers of a run come to under its layout: values that are left to NeMo or Megatron-Core, resolved."""

from __future__ import annotations

from slipway.configs import Spec

# Megatron-Core 0.15.3 DistributedDataParallel: parameters of a bucket, at least, and for each data-parallel rank.
_LEAST_BUCKET = 40_000_000
_BUCKET_PER_RANK = 1_000_000


def bucket_size(spec: Spec) -> int:
    """Parameters whose gradients are reduced together."""
    return spec.levers.bucket_size or max(_LEAST_BUCKET, _BUCKET_PER_RANK * max(spec.dp, 1))


def aligns_param_gather(spec: Spec) -> bool:
    """Whether all pipeline stages gather their parameters at the same time: in NeMo, with a virtual pipeline."""
    layout, given = spec.layout, spec.levers.align_param_gather
    return layout.pp > 1 and layout.vpp > 1 if given is None else given


def deferred_micro_batches(spec: Spec) -> int:
    """Micro-batches whose weight gradient of the output layer is computed at the end of the pipeline."""
    return min(spec.levers.wgrad_deferral_limit, spec.batch.num_micro_batches) if spec.layout.pp > 1 else 0
