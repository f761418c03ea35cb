"""The GPUs of this machine, by nvidia-smi: of one kind, whole, free, connected, and those of the recipe."""

from __future__ import annotations

import re

from slipway.configs import Spec
from slipway.launch.doctor.commands import printed_by
from slipway.launch.doctor.finding import Finding
from slipway.launch.doctor.installed import installed_version

POSITION = 20
STAND_IN = "+slipway.cpu"  # the end of the version of the stand-ins for CPU ranks


def findings(spec: Spec | None) -> list[Finding]:
    listed = printed_by("nvidia-smi", "--query-gpu=name,memory.total,mig.mode.current", "--format=csv,noheader")
    if not listed:
        return [Finding("GPU", "none", "any, to train more than toys", True)]
    rows = listed.splitlines()
    out = [_kinds(rows)]
    if any("Enabled" in row for row in rows):
        wanted, fix = "disabled: a rank uses a whole GPU", "nvidia-smi -mig 0, then reset the GPU"
        out.append(Finding("MIG", "enabled", wanted, False, fix))
    if spec is not None:
        out += _for_recipe(rows, spec)
    busy = printed_by("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader")
    if busy:
        found = f"{len(busy.splitlines())} on the GPUs"
        out.append(Finding("other processes", found, "none", False, "nvidia-smi lists them"))
    engine = installed_version("transformer-engine")
    if not engine or engine.endswith(STAND_IN):
        fix = "pip install 'nemo-slipway[gpu]', or use the container"
        out.append(Finding("transformer-engine", engine or "not installed", "NVIDIA's 2.9", False, fix))
    return out + _nvlink(len(rows))


def _kinds(rows: list[str]) -> Finding:
    good = len(set(rows)) == 1
    fix = "set CUDA_VISIBLE_DEVICES without the one that differs"
    return Finding("GPU", f"{len(rows)} x {rows[0]}", "all of one kind", good, fix)


def _for_recipe(rows: list[str], spec: Spec) -> list[Finding]:
    wanted = min(spec.gpus, spec.gpus_per_node)
    here, planned = rows[0].split(",")[0], spec.gpu.device_name
    return [
        Finding("GPUs for the recipe", str(len(rows)), f"{wanted} a node", len(rows) >= wanted, f"gpus={len(rows)}"),
        Finding("kind of GPU", here, planned, here == planned, "set gpu= to the kind that is here, and check again"),
        *_kernels(spec),
    ]


def _kernels(spec: Spec) -> list[Finding]:
    """The packages whose kernels the recipe calls in its first steps."""
    from slipway.recipes.runtime.kernels import kernels_of

    return [
        Finding(
            kernel.package,
            "installed" if kernel.installed else "not installed",
            f"the module {kernel.module}, for {kernel.needed_by}",
            kernel.installed,
            kernel.without,
        )
        for kernel in kernels_of(spec)
    ]


def _nvlink(gpus: int) -> list[Finding]:
    """NVLink between all GPUs of the node, by the matrix of nvidia-smi: NV18 is a connection by 18 links."""
    topology = printed_by("nvidia-smi", "topo", "-m")
    if gpus < 2 or not topology:
        return []
    lines = [line for line in topology.splitlines() if re.match(r"GPU\d+\s", line)]
    rows = [cells for line in lines if "X" in (cells := line.split())]  # the header has no X
    without = [name for name, *cells in rows if any(not cell.startswith("NV") for cell in cells[:gpus] if cell != "X")]
    found = f"not from {', '.join(without)}" if without else "between all"
    fix = "nvidia-smi nvlink --status; systemctl status nvidia-fabricmanager"
    return [Finding("NVLink", found, "between all GPUs of a node", not without, fix)]
