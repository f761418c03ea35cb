"""The probability that a run fits: the error of the memory model, what its allocator wastes, and how it routes tokens.

Symbols:
    capacity  GiB of the GPU, less what lives outside the allocator
    peak      predicted GiB of the allocator's peak
    waste     reserved over allocated memory, in the median
    spread    standard deviation of the logarithm of the true over the predicted peak
    P(fits) = normal cumulative distribution of ln(capacity / (waste x peak)) / spread
"""

from __future__ import annotations

import math

from slipway.configs import Spec
from slipway.planner.memory.estimate import (
    FRAGMENTATION,
    REAL_EXPERT_LOAD,
    Memory,
    routes_unevenly,
    workload_memory,
)
from slipway.planner.workload import Workload, workload_of

PEAK_SPREAD = 0.05
"""Two in three of Megatron-LM's golden peaks without expert parallelism lie within 5 % of the prediction, nine in ten
of those on H100 (python -m benchmarks.accuracy --golden)."""

LIKELY = 0.97
"""The probability that a default layout has where some layout as fast has it."""

# Reserved over allocated memory with PyTorch's expandable segments, in the median: with 1.03 the published runs fit.
# Without them it is FRAGMENTATION.
_EXPANDABLE_WASTE = 1.03
# The load of the experts at a step's worst moment over an even load: quartiles of 1.34 and 1.59 around
# REAL_EXPERT_LOAD in 82 of Megatron-LM's golden peaks. A normal distribution has its quartiles at 0.674 of its spread.
_LOAD_SPREAD = math.log(1.59 / 1.34) / (2 * 0.674)
# Seven equally likely values of a standard normal distribution, which stand for it: the middles of its sevenths.
_NORMAL = (-1.465, -0.792, -0.366, 0.0, 0.366, 0.792, 1.465)
_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
_EXPANDABLE = "expandable_segments:True"


def p_fits(spec: Spec) -> float:
    """The probability that a legal ``spec`` fits its GPUs, from 0 to 1."""
    work = workload_of(spec)
    return probability_of_fit(work, workload_memory(work))


def probability_of_fit(work: Workload, estimate: Memory) -> float:
    """The probability that a run fits its GPUs, from 0 to 1.

    Args:
        estimate: the memory of ``work`` with an even load of the experts.
    """
    if not routes_unevenly(work.spec):
        return _fits(work.spec, estimate)
    most = float(work.spec.layout.ep)  # a rank is sent at most all tokens of its group
    loads = [min(REAL_EXPERT_LOAD * math.exp(_LOAD_SPREAD * value), most) for value in _NORMAL]
    return sum(_fits(work.spec, workload_memory(work, load)) for load in loads) / len(loads)


def _fits(spec: Spec, estimate: Memory) -> float:
    room = estimate.capacity_gib - estimate.outside_gib
    if room <= 0:
        return 0.0
    waste = _EXPANDABLE_WASTE if expands_segments(spec) else FRAGMENTATION
    margin = math.log(room / (waste * estimate.peak_gib)) / PEAK_SPREAD
    return (1.0 + math.erf(margin / math.sqrt(2.0))) / 2.0


def expands_segments(spec: Spec) -> bool:
    """Whether the ranks' allocator has expandable segments: it has, but for CUDA graphs and a cluster's own setting."""
    given = spec.cluster.env.get(_ALLOCATOR)
    return not spec.layout.cuda_graphs if given is None else _EXPANDABLE in given
