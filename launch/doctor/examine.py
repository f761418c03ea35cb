"""``slipway doctor``: what is here, what should be, and the line that mends it. Imports neither torch nor NeMo."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import yaml

from slipway.configs import Refusal, Spec, nearest
from slipway.configs.load import ROOT
from slipway.recipes.runtime.source import LOCK

NEEDED_DISK_GIB = 20.0
NEEDED_SHARED_GIB = 1.0  # per-rank buffers of data workers and NCCL live in /dev/shm
ALLOWED_CLOCK_S = 2.0  # more, and make-like tools, tokens and log orders go wrong
# The oldest Linux driver of a CUDA major version (CUDA Toolkit release notes, "minor version compatibility")
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}


@dataclass(frozen=True)
class Finding:
    """One line: what is, what should be, and the command that mends it (empty where all is well)."""

    subject: str
    found: str
    wanted: str
    good: bool
    fix: str = ""


def _version(package: str) -> str:
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return ""


def printed_by(*words: str, timeout: float = 15) -> str | None:
    """What a command prints, or None if it is not here or fails."""
    if shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _ngc() -> str:
    """The NVIDIA image this runs in, by the version that its environment names; empty outside of one."""
    return os.environ.get("NEMO_VERSION") or os.environ.get("NVIDIA_PYTORCH_VERSION", "")


def _packages(spec: Spec | None) -> list[Finding]:
    table = yaml.safe_load((ROOT / "supported.yaml").read_text())
    right_python = sys.version_info[:2] in ((3, 11), (3, 12)) if _ngc() else sys.version_info[:2] == (3, 11)
    out = [
        Finding(
            "Python",
            platform.python_version(),
            "3.11 (3.12 in NVIDIA's image)",
            right_python,
            "make setup PYTHON=/path/to/python3.11",
        )
    ]
    for name, expected in table["packages"].items():
        found = _version(name)
        of_base = bool(_ngc()) and name in table["from_the_base_image"]
        good = bool(found) and (of_base or found == expected)
        wanted = "the base image's own" if of_base else expected
        out.append(Finding(name, found or "not installed", wanted, good, f"pip install -c {LOCK} {name}=={expected}"))
    return out + _cuda()


def _cuda() -> list[Finding]:
    """torch, Transformer Engine and the driver must be of one CUDA major version."""
    try:
        text = Path(str(distribution("torch").locate_file("torch/version.py"))).read_text()
    except (PackageNotFoundError, OSError):
        return []
    built = re.search(r"^cuda: .*= '(\d+)\.(\d+)'", text, re.MULTILINE)
    if built is None:
        return [Finding("CUDA of torch", "none: a CPU build", "any, to train more than toys", True)]
    major = int(built[1])
    out = []
    engines = [n for n in (11, 12, 13) if _version(f"transformer-engine-cu{n}")]
    if engines:
        fix = f"pip install transformer-engine-cu{major}=={_version(f'transformer-engine-cu{engines[0]}')}"
        out.append(
            Finding("Transformer Engine", f"for CUDA {engines[0]}", f"CUDA {major}, as torch", engines == [major], fix)
        )
    driver = printed_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if driver:
        first = driver.splitlines()[0]
        oldest = OLDEST_DRIVER.get(major, 0)
        good = int(first.split(".")[0]) >= oldest
        out.append(
            Finding(
                "driver",
                first,
                f"{oldest} or newer for CUDA {major}",
                good,
                f"a driver of branch {oldest}, or torch for an older CUDA",
            )
        )
    return out


def _gpus(spec: Spec | None) -> list[Finding]:
    listed = printed_by("nvidia-smi", "--query-gpu=name,memory.total,mig.mode.current", "--format=csv,noheader")
    if not listed:
        return [Finding("GPU", "none", "any, to train more than toys", True)]
    rows = listed.splitlines()
    out = [
        Finding(
            "GPU",
            f"{len(rows)} x {rows[0]}",
            "all alike",
            len(set(rows)) == 1,
            "CUDA_VISIBLE_DEVICES without the odd one",
        )
    ]
    if any("Enabled" in row for row in rows):
        out.append(
            Finding(
                "MIG", "enabled", "disabled: a rank takes a whole GPU", False, "nvidia-smi -mig 0, then reset the GPU"
            )
        )
    if spec is not None:
        wanted = min(spec.gpus, spec.gpus_per_node)
        out.append(
            Finding("GPUs for the recipe", str(len(rows)), f"{wanted} a node", len(rows) >= wanted, f"gpus={len(rows)}")
        )
        here, planned = rows[0].split(",")[0], spec.gpu.device_name
        out.append(Finding("kind of GPU", here, planned, here == planned, "gpu= the one that is here, and check again"))
    busy = printed_by("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader")
    if busy:
        out.append(
            Finding("other processes", f"{len(busy.splitlines())} on the GPUs", "none", False, "nvidia-smi shows them")
        )
    if _version("transformer-engine") == "":
        out.append(
            Finding(
                "transformer-engine",
                "not installed",
                "2.9",
                False,
                "pip install 'nemo-slipway[gpu]', or use the container",
            )
        )
    return out + _links(len(rows))


def _links(gpus: int) -> list[Finding]:
    """NVLink between all GPUs of the node, and a live network adapter for each."""
    out = []
    topology = printed_by("nvidia-smi", "topo", "-m")
    if gpus > 1 and topology:
        rows = [
            cells for line in topology.splitlines() if re.match(r"GPU\d+\s", line) and "X" in (cells := line.split())
        ]  # not the header
        without = [
            row[0]
            for row in rows
            if any(not cell.startswith("NV") for i, cell in enumerate(row[1 : gpus + 1]) if cell != "X")
        ]
        found = "between all" if not without else f"not from {', '.join(without)}"
        out.append(
            Finding(
                "NVLink",
                found,
                "between all GPUs of a node",
                not without,
                "nvidia-smi nvlink --status; systemctl status nvidia-fabricmanager",
            )
        )
    return out


def _network(spec: Spec | None) -> list[Finding]:
    """InfiniBand or RoCE adapters by sysfs, and what of NCCL's environment slows or stops it."""
    out = []
    ports = sorted(Path("/sys/class/infiniband").glob("*/ports/*"))
    if ports:
        down = [p.parts[-3] for p in ports if "ACTIVE" not in (p / "state").read_text()]
        rates = {(p / "rate").read_text().strip() for p in ports}
        found = f"{len(ports)} ports at {', '.join(sorted(rates))}" + (f"; down: {', '.join(down)}" if down else "")
        out.append(
            Finding(
                "network adapters",
                found,
                "all active, at one rate",
                not down and len(rates) == 1,
                "ibstat; NCCL_IB_HCA without the bad one",
            )
        )
        locked = printed_by("bash", "-c", "ulimit -l") or ""
        out.append(
            Finding(
                "locked memory",
                locked,
                "unlimited: adapters pin their buffers",
                locked == "unlimited",
                "ulimit -l unlimited, or docker run --ulimit memlock=-1",
            )
        )
    elif spec is not None and spec.num_nodes > 1 and shutil.which("nvidia-smi"):
        out.append(
            Finding(
                "network adapters",
                "none",
                f"{spec.num_nodes} nodes need InfiniBand or RoCE",
                False,
                "ask your site; in a container, mount /dev/infiniband",
            )
        )
    for name, bad, why in (
        ("NCCL_IB_DISABLE", "1", "unset: without InfiniBand NCCL goes over TCP"),
        ("NCCL_P2P_DISABLE", "1", "unset: without it NVLink is not used"),
        ("NCCL_SHM_DISABLE", "1", "unset"),
        ("NCCL_DEBUG", "TRACE", "WARN: TRACE slows every call"),
    ):
        if os.environ.get(name, "").upper() == bad:
            out.append(Finding(name, bad, why, False, f"unset {name}"))
    interface = os.environ.get("NCCL_SOCKET_IFNAME", "").lstrip("=^").split(",")[0]
    if interface:
        names = [name for _, name in socket.if_nameindex()]
        good = any(name.startswith(interface) for name in names)
        out.append(
            Finding("NCCL_SOCKET_IFNAME", interface, f"one of {', '.join(names)}", good, "unset NCCL_SOCKET_IFNAME")
        )
    return out


def _slurm(spec: Spec | None) -> list[Finding]:
    if shutil.which("sinfo") is None:
        return [Finding("SLURM", "none", "only to submit", True)]
    listed = printed_by("sinfo", "-h", "-o", "%R|%a|%D|%G|%l")
    configured = (
        "SLURM_CONF" in os.environ
        or Path("/etc/slurm/slurm.conf").exists()
        or bool(printed_by("systemctl", "is-active", "slurmd"))
    )
    if listed is None and not configured:
        return [Finding("SLURM", "its commands, and no cluster", "only to submit", True)]
    if listed is None:
        return [Finding("SLURM", "no controller answers", "sinfo lists partitions", False, "scontrol ping")]
    partitions = [line.split("|") for line in listed.splitlines()]
    accounting = printed_by("sacct", "-n", "-X", "-S", "now") is not None
    options = printed_by("srun", "--help") or ""
    pyxis = "--container-image" in options
    out = [
        Finding(
            "SLURM",
            ", ".join(dict.fromkeys(p[0] for p in partitions)),
            "at least one partition",
            bool(partitions),
            "scontrol ping",
        ),
        Finding(
            "SLURM accounting",
            "answers" if accounting else "silent",
            "answers: NeMo-Run reads job states from sacct",
            accounting,
            "ask your site for slurmdbd",
        ),
        Finding("pyxis", "there" if pyxis else "not there", "only for container_image", True),
    ]
    if spec is None or spec.cluster.executor != "slurm":
        return out
    cluster = spec.cluster
    if cluster.container_image and not pyxis:
        out.append(
            Finding(
                "container_image",
                cluster.container_image,
                "needs pyxis",
                False,
                "ask your site for pyxis, or cluster.container_image=''",
            )
        )
    ours = [p for p in partitions if p[0] == cluster.partition] or [p for p in partitions if not cluster.partition]
    if not ours:
        names = ", ".join(dict.fromkeys(p[0] for p in partitions))
        return [
            *out,
            Finding("partition", cluster.partition, f"one of {names}", False, f"cluster.partition={partitions[0][0]}"),
        ]
    _, state, _, _, limit = ours[0]
    nodes = sum(int(p[2]) for p in ours)
    out.append(Finding(f"partition {ours[0][0]}", state, "up", state == "up", "another cluster.partition"))
    out.append(
        Finding("its nodes", str(nodes), f"{spec.num_nodes} for the recipe", nodes >= spec.num_nodes, f"nodes={nodes}")
    )
    kinds = ", ".join(dict.fromkeys(p[3] for p in ours))
    counted = [int(n) for n in re.findall(r"gpu:(?:[A-Za-z]\w*:)?(\d+)", kinds)]
    wanted = min(spec.gpus, spec.gpus_per_node)
    if cluster.accelerator != "cpu":
        out.append(
            Finding(
                "its GRES",
                kinds,
                f"{wanted} GPUs a node",
                bool(counted) and max(counted) >= wanted,
                "cluster.gpus_per_node as the nodes have",
            )
        )
    from slipway.launch.executors.slurm.time_limit import time_limit_seconds

    have, ask = time_limit_seconds(limit), time_limit_seconds(cluster.time)
    good = limit == "infinite" or (have is not None and ask is not None and ask <= have)
    out.append(Finding("its time limit", limit, f"at least {cluster.time}", good, f"cluster.time={limit}"))
    return out


def _container(spec: Spec | None) -> list[Finding]:
    base = yaml.safe_load((ROOT / "supported.yaml").read_text())["base_image"]
    inside = Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() or bool(_ngc())
    if not inside:
        return [Finding("container", "none", f"on a GPU machine: an image on {base}", True)]
    return [Finding("container", f"NVIDIA's, {_ngc()}" if _ngc() else "yes", f"an image on {base}", True)]


def _space(spec: Spec | None) -> list[Finding]:
    folder = Path(spec.run.dir if spec else ".").expanduser().resolve()
    while not folder.exists():
        folder = folder.parent
    needed, why = NEEDED_DISK_GIB, ""
    if spec is not None:
        from slipway import planner

        memory = planner.check(spec).memory
        if memory is not None:  # one more than is kept: the new checkpoint is whole before an old one goes
            needed, why = (
                memory.checkpoint_gib * (spec.run.keep_checkpoints + 1),
                f" for {spec.run.keep_checkpoints} checkpoints and one more",
            )
    here = shutil.disk_usage(folder).free / 2**30
    out = [
        Finding(
            f"disk of {folder}",
            f"{here:,.0f} GiB free",
            f"{needed:,.0f} GiB{why}",
            here >= needed,
            "run.dir= a folder with room, or a smaller run.keep_checkpoints",
        )
    ]
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free / 2**30
        fix = "docker run --ipc=host, or --shm-size=8g"
        out.append(
            Finding("/dev/shm", f"{free:.1f} GiB free", f"{NEEDED_SHARED_GIB:.0f} GiB", free >= NEEDED_SHARED_GIB, fix)
        )
    return out + _clock(folder)


def _clock(folder: Path) -> list[Finding]:
    """This machine's clock against that of the file system, which on a cluster is another machine's."""
    out = []
    if os.access(folder, os.W_OK):
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".slipway-clock-") as file:
            before = time.time()
            file.write(b"x")
            file.flush()
            skew = Path(file.name).stat().st_mtime - before
        good = abs(skew) <= ALLOWED_CLOCK_S
        out.append(
            Finding(
                "clock",
                f"{skew:+.1f} s against the file system",
                f"within {ALLOWED_CLOCK_S:.0f} s",
                good,
                "chronyc makestep, on whichever is wrong",
            )
        )
    synchronized = printed_by("timedatectl", "show", "-p", "NTPSynchronized", "--value")
    if synchronized:
        out.append(Finding("NTP", synchronized, "yes", synchronized == "yes", "systemctl enable --now chronyd"))
    return out


def _environment(spec: Spec | None) -> list[Finding]:
    value = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "unset")
    wanted = "1 on Hopper with TP or CP, 32 on Blackwell, or unset"
    out = [
        Finding(
            "CUDA_DEVICE_MAX_CONNECTIONS",
            value,
            wanted,
            value in ("1", "32", "unset"),
            "export CUDA_DEVICE_MAX_CONNECTIONS=1",
        )
    ]
    for name in ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN"):
        if name in os.environ:
            out.append(
                Finding(name, os.environ[name], "unset: Megatron-Core chooses and asserts", False, f"unset {name}")
            )
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        why = "unset: importing NeMo takes three times as long"
        out.append(Finding("PYTHONDONTWRITEBYTECODE", "set", why, False, "unset PYTHONDONTWRITEBYTECODE"))
    return out


SECTIONS: dict[str, Callable[[Spec | None], list[Finding]]] = {
    "packages": _packages,
    "gpu": _gpus,
    "network": _network,
    "slurm": _slurm,
    "container": _container,
    "space": _space,
    "environment": _environment,
}


def examine(only: str = "", spec: Spec | None = None) -> list[Finding]:
    """Everything that can be seen from here without importing torch.

    Args:
        only: sections with commas between, as packages,gpu; empty for all.
        spec: a recipe to hold the machine and its cluster against.

    Raises:
        Refusal: a section that there is not.
    """
    chosen = [word.strip() for word in only.split(",") if word.strip()] or list(SECTIONS)
    for word in chosen:
        if word not in SECTIONS:
            raise Refusal(f"the doctor has no section {word!r}; {nearest(word, SECTIONS)}")
    return [finding for word in chosen for finding in SECTIONS[word](spec)]
