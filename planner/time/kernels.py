"""Seconds of the kernels that a training step is made of: matrix products, fused attention, memory-bound kernels.

A matrix product has no single efficiency: its time is its arithmetic at the achievable rate, plus the share of its
operand traffic that the arithmetic does not hide, plus a fixed cost. Small and thin shapes are therefore slow without a
table of shapes.

Symbols:
    m, n, k   a product of [m, k] by [k, n] (elements)
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from slipway.configs import Calibration, Gpu
from slipway.planner.numerics import Dtype, Scaling, dense_peak_tflops
from slipway.planner.workload import LayerContext

# Output tiles (rows, columns) that a library chooses from, and each one's rate over the best one's: a smaller tile
# reads its operands more often. Typical of CUTLASS on A100 and H100; calibration fits what is left (gemm_tail).
_TILES = ((128, 256, 1.0), (256, 128, 1.0), (128, 128, 0.93), (128, 64, 0.8), (64, 128, 0.8), (64, 64, 0.62))
# Ways to split the inner dimension where the outer two make too few tiles, and the rate that remains.
_SPLITS = ((1, 1.0), (2, 0.93), (4, 0.86))
# Fused attention: the softmax costs the same for a head of any width, so the share of matrix arithmetic falls with a
# narrow one. rate(width) = 1.5 width / (width + 64), which is 1 at the usual width of 128.
_USUAL_HEAD = 128.0
_HEAD_AT_HALF_RATE = 64.0


@functools.lru_cache(maxsize=65536)
def _filled(m: float, n: float, count: int, multiprocessors: int) -> float:
    """Share of the multiprocessors' time that a product's waves of output tiles use, with the best choice of tile."""
    best = 0.0
    for rows, columns, rate in _TILES:
        tiles = math.ceil(m / rows) * math.ceil(n / columns) * count
        useful = m * n * count / (rows * columns)
        for split, kept in _SPLITS:
            waves = math.ceil(tiles * split / multiprocessors)
            best = max(best, rate * kept * useful * split / (waves * multiprocessors))
    return best


@dataclass(frozen=True)
class Device:
    """A GPU as one software generation drives it: rates in FLOP/s and bytes/s, times in seconds."""

    gpu: Gpu
    cal: Calibration

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.gpu, self.cal))

    def gemm_rate(self, dtype: Dtype, scaling: Scaling = Scaling.none) -> float:
        """FLOP/s of a large matrix product. A dtype that the part has no units for runs as bf16."""
        peak = dense_peak_tflops(self.gpu, dtype)
        if not peak:
            dtype = Dtype.bf16
            peak = dense_peak_tflops(self.gpu, dtype)
        return peak * 1e12 * self._gemm_efficiency(dtype, scaling)

    def _gemm_efficiency(self, dtype: Dtype, scaling: Scaling) -> float:
        if dtype is Dtype.fp8:
            return self.cal.mxfp8_gemm_efficiency if scaling is Scaling.mxfp8 else self.cal.fp8_gemm_efficiency
        return self.cal.fp4_gemm_efficiency if dtype is Dtype.fp4 else self.cal.gemm_efficiency

    @functools.cached_property
    def memory_rate(self) -> float:
        """Bytes/s of streaming kernels."""
        return self.gpu.memory_gb_per_s * 1e9 * self.cal.memory_efficiency

    def gemm(
        self, m: float, n: float, k: float, dtype: Dtype, scaling: Scaling = Scaling.none, count: int = 1
    ) -> float:
        """``count`` products [m, k] x [k, n] in one launch."""
        if m <= 0:
            return 0.0
        moved = dtype.element_bytes * (m * k + k * n) + dtype.output_bytes * m * n
        idle = 1.0 / _filled(m, n, count, self.gpu.multiprocessors) - 1.0
        arithmetic = 2.0 * m * n * k / self.gemm_rate(dtype, scaling) * (1.0 + self.cal.gemm_tail * idle)
        traffic = moved / self.memory_rate
        return count * max(arithmetic + self.cal.gemm_bytes_exposed * traffic, traffic) + self.cal.kernel_us * 1e-6

    def stream(self, moved_bytes: float, kernels: int = 1) -> float:
        """``kernels`` kernels that read and write ``moved_bytes`` in all and compute next to nothing."""
        return moved_bytes / self.memory_rate + kernels * self.cal.kernel_us * 1e-6

    def attention(self, flops: float, dtype: Dtype, head_dim: float = _USUAL_HEAD) -> float:
        """Fused attention of ``flops`` operations over heads of ``head_dim`` channels, its operands in ``dtype``."""
        width = (1 + _HEAD_AT_HALF_RATE / _USUAL_HEAD) * head_dim / (head_dim + _HEAD_AT_HALF_RATE)
        rate = dense_peak_tflops(self.gpu, dtype) * 1e12 * self.cal.attention_efficiency
        return flops / (rate * width) + self.cal.kernel_us * 1e-6


@functools.lru_cache(maxsize=8192)
def device_of(context: LayerContext) -> Device:
    """The GPU that the layers of ``context`` run on."""
    return Device(context.gpu, context.calibration)
