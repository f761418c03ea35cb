"""Bind a rank to the processors that are closest to its GPU, so that its memory and its launches stay on their socket.

NVIDIA's performance scripts start each rank under numactl, by a fixed number of GPUs a socket. torchrun starts the
ranks here, so each binds itself, by what the machine says of its GPU.
"""

from __future__ import annotations

import os
from pathlib import Path

PCI_DEVICES = Path("/sys/bus/pci/devices")


def processors_near(pci_address: str, devices: Path = PCI_DEVICES) -> set[int]:
    """The processors of the socket that a PCI device is attached to; none where the machine does not say.

    Args:
        pci_address: as ``0000:1b:00.0``.
    """
    try:
        text = (devices / pci_address / "local_cpulist").read_text().strip()
    except OSError:
        return set()
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def bind_to(pci_address: str, devices: Path = PCI_DEVICES) -> set[int]:
    """Run this process, and what it starts, near a PCI device. Memory is then allocated there at its first use.

    Returns:
        The processors that it runs on. Those that the job may not use are left out; where none is left, nothing
        changes.
    """
    allowed = os.sched_getaffinity(0)
    near = processors_near(pci_address, devices) & allowed
    if near and near != allowed:
        os.sched_setaffinity(0, near)
        return near
    return allowed


def bind_to_own_gpu() -> None:
    """Run this rank near the GPU that torchrun gave it."""
    import torch

    if not torch.cuda.is_available():
        return
    device = torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0")))
    bind_to(f"{device.pci_domain_id:04x}:{device.pci_bus_id:02x}:{device.pci_device_id:02x}.0")
