"""Seconds of the kernels that a training step is made of: GEMM, attention, streaming kernels, collectives.

A GEMM is not at one efficiency: to its arithmetic at the achievable rate come the share of its operand traffic that is not
hidden, and a fixed cost. Small and thin shapes therefore run slow without a table of them.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from slipway.configs import Calibration, Gpu
from slipway.planner.numerics import Dtype, Scaling, dense_peak_tflops

# Output tiles that a library chooses from, and how near to the best one's rate each comes: a smaller tile reads its operands more often.
_TILES = ((128, 256, 1.0), (256, 128, 1.0), (128, 128, 0.93), (128, 64, 0.8), (64, 128, 0.8), (64, 64, 0.62))
_SPLITS = ((1, 1.0), (2, 0.93), (4, 0.86))  # of the inner dimension, where the outer two make too few tiles


@functools.lru_cache(maxsize=65536)
def _filled(m: float, n: float, count: int, multiprocessors: int) -> float:
    """Share of the multiprocessors' time that a GEMM's waves of output tiles put to use, under the best choice of tile."""
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

    def gemm_rate(self, dtype: Dtype, scaling: Scaling = Scaling.none) -> float:
        """FLOP/s of a large matrix product; a dtype that the part has no units for runs as bf16."""
        peak = dense_peak_tflops(self.gpu, dtype)
        if not peak:
            dtype = Dtype.bf16
            peak = dense_peak_tflops(self.gpu, dtype)
        return peak * 1e12 * self._gemm_efficiency(dtype, scaling)

    def _gemm_efficiency(self, dtype: Dtype, scaling: Scaling) -> float:
        if dtype is Dtype.fp8:
            return self.cal.mxfp8_gemm_efficiency if scaling is Scaling.mxfp8 else self.cal.fp8_gemm_efficiency
        return self.cal.fp4_gemm_efficiency if dtype is Dtype.fp4 else self.cal.gemm_efficiency

    @property
    def memory_rate(self) -> float:
        return self.gpu.memory_gb_per_s * 1e9 * self.cal.memory_efficiency

    def gemm(
        self, m: float, n: float, k: float, dtype: Dtype, scaling: Scaling = Scaling.none, count: int = 1
    ) -> float:
        """``count`` products [m, k] x [k, n], their outputs in 16 bits."""
        if m <= 0:
            return 0.0
        moved = dtype.element_bytes * (m * k + k * n) + 2.0 * m * n
        idle = 1.0 / _filled(m, n, count, self.gpu.multiprocessors) - 1.0
        arithmetic = 2.0 * m * n * k / self.gemm_rate(dtype, scaling) * (1.0 + self.cal.gemm_tail * idle)
        traffic = moved / self.memory_rate
        return count * max(arithmetic + self.cal.gemm_bytes_exposed * traffic, traffic) + self.cal.kernel_us * 1e-6

    def stream(self, moved_bytes: float, kernels: int = 1) -> float:
        """Kernels that read and write ``moved_bytes`` in all and compute next to nothing."""
        return moved_bytes / self.memory_rate + kernels * self.cal.kernel_us * 1e-6

    def attention(self, flops: float, head_dim: float = 128.0) -> float:
        """Fused attention. Softmax costs the same for any head: the share of matrix arithmetic falls with a narrow one."""
        width = 1.5 * head_dim / (head_dim + 64.0)  # 1 at the usual 128
        return flops / (self.gpu.bf16_tflops * 1e12 * self.cal.attention_efficiency * width) + self.cal.kernel_us * 1e-6


@dataclass(frozen=True)
class Link:
    """The slowest link of a group of ranks and how fast its collectives run over it.

    ``local`` ranks of the group share a node (or NVLink domain), each with its own network card: a ring through all of
    them drives that many cards at once.
    """

    device: Device
    size: int
    local: int

    @property
    def rate(self) -> float:
        """Bus bandwidth, bytes/s, as nccl-tests define it."""
        g, c = self.device.gpu, self.device.cal
        nvlink = g.nvlink_gb_per_s * 1e9 * c.nvlink_efficiency
        if self.local >= self.size:
            return nvlink
        return min(nvlink, self.local * g.nic_gb_per_s * 1e9 * c.network_efficiency)

    @property
    def latency(self) -> float:
        return self.device.cal.collective_us * 1e-6 * (1 + math.log2(max(self.size / self.local, 1.0)))

    def gather(self, total_bytes: float) -> float:
        """All-gather to, or reduce-scatter from, ``total_bytes`` on each rank."""
        if self.size == 1:
            return 0.0
        return total_bytes * (self.size - 1) / self.size / self.rate + self.latency

    def all_reduce(self, total_bytes: float) -> float:
        return 2.0 * self.gather(total_bytes)

    def all_to_all(self, sent_bytes: float, across_bytes: float | None = None) -> float:
        """Each rank sends ``sent_bytes``, evenly to all: what leaves the node goes through the rank's own card.

        ``across_bytes``: what the whole would be for the network, where fewer copies cross it than arrive.
        """
        if self.size == 1:
            return 0.0
        g, c = self.device.gpu, self.device.cal
        inside = (
            sent_bytes * (min(self.local, self.size) - 1) / self.size / (g.nvlink_gb_per_s * 1e9 * c.nvlink_efficiency)
        )
        outside = (
            (sent_bytes if across_bytes is None else across_bytes)
            * max(self.size - self.local, 0)
            / self.size
            / (g.nic_gb_per_s * 1e9 * c.network_efficiency)
        )
        return inside + outside + self.latency

    def send(self, sent_bytes: float) -> float:
        """Point to point, one neighbour to the next."""
        if self.size == 1:
            return 0.0
        g, c = self.device.gpu, self.device.cal
        rate = (
            g.nvlink_gb_per_s * c.nvlink_efficiency
            if self.local >= self.size
            else g.nic_gb_per_s * c.network_efficiency
        )
        return sent_bytes / (rate * 1e9) + self.device.cal.collective_us * 1e-6


def link(device: Device, size: int, stride: int) -> Link:
    """The link of a group of ``size`` ranks that lie ``stride`` ranks apart."""
    local = max(1, min(size, device.gpu.nvlink_domain // max(stride, 1)))
    return Link(device, size, local)
