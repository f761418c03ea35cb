"""InfiniBand or RoCE adapters, and the variables of NCCL's environment that slow it down or stop it."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from slipway.configs import Spec
from slipway.launch.doctor.commands import printed_by
from slipway.launch.doctor.finding import Finding

POSITION = 30
# Variable, the value that does harm, and why
HARMFUL = (
    ("NCCL_IB_DISABLE", "1", "unset: without InfiniBand NCCL uses TCP"),
    ("NCCL_P2P_DISABLE", "1", "unset: without peer-to-peer access NCCL does not use NVLink"),
    ("NCCL_SHM_DISABLE", "1", "unset: without shared memory NCCL uses the network within a node"),
    ("NCCL_DEBUG", "TRACE", "WARN: TRACE slows down every call"),
)


def findings(spec: Spec | None) -> list[Finding]:
    return [*_adapters(spec), *_harmful_variables(), *_interface()]


def _adapters(spec: Spec | None) -> list[Finding]:
    ports = sorted(Path("/sys/class/infiniband").glob("*/ports/*"))
    if ports:
        return [_ports(ports), _locked_memory()]
    if spec is not None and spec.num_nodes > 1 and shutil.which("nvidia-smi"):
        wanted = f"{spec.num_nodes} nodes need InfiniBand or RoCE"
        fix = "ask your site; in a container, mount /dev/infiniband"
        return [Finding("network adapters", "none", wanted, False, fix)]
    return []


def _ports(ports: list[Path]) -> Finding:
    down = [port.parts[-3] for port in ports if "ACTIVE" not in (port / "state").read_text()]
    rates = {(port / "rate").read_text().strip() for port in ports}
    found = f"{len(ports)} ports at {', '.join(sorted(rates))}" + (f"; down: {', '.join(down)}" if down else "")
    good = not down and len(rates) == 1
    fix = "run ibstat; set NCCL_IB_HCA to the adapters that work"
    return Finding("network adapters", found, "all active, at one rate", good, fix)


def _locked_memory() -> Finding:
    limit = printed_by("bash", "-c", "ulimit -l") or ""
    fix = "ulimit -l unlimited, or docker run --ulimit memlock=-1"
    return Finding("locked memory", limit, "unlimited: adapters pin their buffers", limit == "unlimited", fix)


def _harmful_variables() -> list[Finding]:
    return [
        Finding(name, value, wanted, False, f"unset {name}")
        for name, value, wanted in HARMFUL
        if os.environ.get(name, "").upper() == value
    ]


def _interface() -> list[Finding]:
    interface = os.environ.get("NCCL_SOCKET_IFNAME", "").lstrip("=^").split(",")[0]
    if not interface:
        return []
    names = [name for _, name in socket.if_nameindex()]
    good = any(name.startswith(interface) for name in names)
    wanted = f"one of {', '.join(names)}"
    return [Finding("NCCL_SOCKET_IFNAME", interface, wanted, good, "unset NCCL_SOCKET_IFNAME")]
