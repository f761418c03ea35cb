"""Seconds of collectives and of point-to-point sends over the links of a group of ranks.

Volumes and the bus bandwidth are as nccl-tests define them (github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from slipway.configs import Gpu
from slipway.planner.time.kernels import Device


@dataclass(frozen=True)
class Link:
    """The slowest link of a group of ranks and how fast its collectives run over it.

    ``local`` ranks of the group share a node (or NVLink domain), each with its own network card: a ring through all of
    them drives that many cards at once.
    """

    device: Device
    size: int
    local: int

    @functools.cached_property
    def _nvlink_rate(self) -> float:
        """Bytes/s of one GPU inside its NVLink domain."""
        return self.device.gpu.nvlink_gb_per_s * 1e9 * self.device.cal.nvlink_efficiency

    def _network_rate(self, cards: int = 1) -> float:
        """Bytes/s of ``cards`` network cards."""
        return cards * self.device.gpu.nic_gb_per_s * 1e9 * self.device.cal.network_efficiency

    @functools.cached_property
    def rate(self) -> float:
        """Bus bandwidth in bytes/s."""
        if self.local >= self.size:
            return self._nvlink_rate
        return min(self._nvlink_rate, self._network_rate(self.local))

    @functools.cached_property
    def latency(self) -> float:
        """Seconds before the first byte of a collective: one more collective_us for each doubling of the nodes."""
        return self.device.cal.collective_us * 1e-6 * (1 + math.log2(max(self.size / self.local, 1.0)))

    def gather(self, total_bytes: float) -> float:
        """All-gather to, or reduce-scatter from, ``total_bytes`` on each rank."""
        if self.size == 1:
            return 0.0
        return total_bytes * (self.size - 1) / self.size / self.rate + self.latency

    def all_reduce(self, total_bytes: float) -> float:
        """A reduce-scatter and an all-gather."""
        return 2.0 * self.gather(total_bytes)

    def all_to_all(self, sent_bytes: float, across_bytes: float | None = None) -> float:
        """Each rank sends ``sent_bytes``, evenly to all: what leaves the node goes through the rank's own card.

        Args:
            across_bytes: what ``sent_bytes`` would be for the network, where fewer copies cross it than arrive.
        """
        if self.size == 1:
            return 0.0
        across = sent_bytes if across_bytes is None else across_bytes
        inside = sent_bytes * (min(self.local, self.size) - 1) / self.size / self._nvlink_rate
        outside = across * max(self.size - self.local, 0) / self.size / self._network_rate()
        return inside + outside + self.latency

    def send(self, sent_bytes: float) -> float:
        """Point to point, from one neighbour to the next."""
        if self.size == 1:
            return 0.0
        g, c = self.device.gpu, self.device.cal
        inside = self.local >= self.size
        rate = g.nvlink_gb_per_s * c.nvlink_efficiency if inside else g.nic_gb_per_s * c.network_efficiency
        return sent_bytes / (rate * 1e9) + c.collective_us * 1e-6


def local_ranks(gpu: Gpu, size: int, stride: int) -> int:
    """Ranks of a group of ``size``, ``stride`` apart, that share an NVLink domain."""
    return max(1, min(size, gpu.nvlink_domain // max(stride, 1)))


def link(device: Device, size: int, stride: int) -> Link:
    """The link of a group of ``size`` ranks that are ``stride`` ranks apart."""
    return Link(device, size, local_ranks(device.gpu, size, stride))
