"""``slipway doctor``: what is here, what should be, and the line that mends it. Imports neither torch nor NeMo."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from configs.load import ROOT

NEEDED_DISK_GIB = 20.0
NEEDED_SHARED_GIB = 1.0  # per-rank buffers of data workers and NCCL live in /dev/shm


@dataclass(frozen=True)
class Finding:
    """One line: what is, what should be, and the command that mends it (empty where all is well)."""

    subject: str
    found: str
    wanted: str
    good: bool
    fix: str = ""


def _packages() -> list[Finding]:
    wanted: dict[str, str] = yaml.safe_load((ROOT / "supported.yaml").read_text())
    out = [
        Finding("Python", platform.python_version(), "3.11", sys.version_info[:2] == (3, 11), "make setup PYTHON=/path/to/python3.11"),
    ]
    for name, expected in wanted.items():
        try:
            found = version(name).split("+")[0]
        except PackageNotFoundError:
            found = "not installed"
        out.append(Finding(name, found, str(expected), found == str(expected), f"pip install -c requirements/lock.txt {name}=={expected}"))
    return out


def _ask(*words: str) -> str | None:
    """What a command prints, or None if it is not here or fails."""
    if shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=15, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _gpus() -> list[Finding]:
    listed = _ask("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if not listed:
        return [Finding("GPU", "none", "any, to train more than toys", True)]
    rows = listed.splitlines()
    same = len(set(rows)) == 1
    out = [Finding("GPU", f"{len(rows)} x {rows[0]}", "all alike", same, "nvidia-smi: take the odd one out with CUDA_VISIBLE_DEVICES")]
    try:
        out.append(Finding("transformer-engine", version("transformer-engine"), "2.9", True))
    except PackageNotFoundError:
        out.append(Finding("transformer-engine", "not installed", "2.9", False, "pip install 'slipway[gpu]', or use the container"))
    return out


def _slurm() -> list[Finding]:
    if shutil.which("sinfo") is None:
        return [Finding("SLURM", "none", "only to submit", True)]
    partitions = _ask("sinfo", "-h", "-o", "%P %a %D %G %l")
    if partitions is None:
        return [Finding("SLURM", "no controller answers", "sinfo lists partitions", False, "scontrol ping")]
    accounting = _ask("sacct", "-n", "-X", "-S", "now") is not None
    return [
        Finding("SLURM", f"{len(partitions.splitlines())} partitions", "at least one", bool(partitions)),
        Finding(
            "SLURM accounting",
            "answers" if accounting else "silent",
            "answers: NeMo-Run reads job states from sacct",
            accounting,
            "ask for slurmdbd",
        ),
    ]


def _space() -> list[Finding]:
    here = shutil.disk_usage(Path.cwd()).free / 2**30
    out = [
        Finding(
            "disk here",
            f"{here:.0f} GiB free",
            f"{NEEDED_DISK_GIB:.0f} GiB",
            here >= NEEDED_DISK_GIB,
            "run where there is room: run.dir=/scratch/...",
        )
    ]
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free / 2**30
        out.append(
            Finding(
                "/dev/shm",
                f"{free:.1f} GiB free",
                f"{NEEDED_SHARED_GIB:.0f} GiB",
                free >= NEEDED_SHARED_GIB,
                "docker run --ipc=host, or --shm-size=8g",
            )
        )
    return out


def _environment() -> list[Finding]:
    value = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "unset")
    out = [
        Finding(
            "CUDA_DEVICE_MAX_CONNECTIONS",
            value,
            "1 on Hopper with TP or CP, or unset",
            value in ("1", "unset"),
            "export CUDA_DEVICE_MAX_CONNECTIONS=1",
        )
    ]
    for name in ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN"):
        if name in os.environ:
            out.append(Finding(name, os.environ[name], "unset: Megatron-Core chooses and asserts", False, f"unset {name}"))
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        out.append(
            Finding(
                "PYTHONDONTWRITEBYTECODE", "set", "unset: importing NeMo takes three times as long", False, "unset PYTHONDONTWRITEBYTECODE"
            )
        )
    return out


def examine() -> list[Finding]:
    """Everything that can be seen from here without importing torch."""
    return _packages() + _gpus() + _slurm() + _space() + _environment()
