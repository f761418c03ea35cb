"""Environment variables that change what CUDA, Transformer Engine and Python do."""

from __future__ import annotations

import os

from slipway.configs import Spec
from slipway.launch.doctor.finding import Finding

POSITION = 70
ATTENTION = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")


def findings(spec: Spec | None) -> list[Finding]:
    return [_connections(), *_attention(), *_bytecode()]


def _connections() -> Finding:
    value = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "unset")
    good = value in ("1", "32", "unset")
    wanted = "1 on Hopper with TP or CP, 32 on Blackwell, or unset"
    fix = "export CUDA_DEVICE_MAX_CONNECTIONS=1"
    return Finding("CUDA_DEVICE_MAX_CONNECTIONS", value, wanted, good, fix)


def _attention() -> list[Finding]:
    wanted = "unset: Megatron-Core sets it, and stops if the value is not its own"
    return [Finding(name, os.environ[name], wanted, False, f"unset {name}") for name in ATTENTION if name in os.environ]


def _bytecode() -> list[Finding]:
    if not os.environ.get("PYTHONDONTWRITEBYTECODE"):
        return []
    wanted = "unset: importing NeMo takes three times as long"
    return [Finding("PYTHONDONTWRITEBYTECODE", "set", wanted, False, "unset PYTHONDONTWRITEBYTECODE", slows=True)]
