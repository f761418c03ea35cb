"""Which code a run trains with: the commit, whether it was changed since, the lock's hash, the versions that matter. No
NeMo.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import slipway
from slipway.configs import Refusal
from slipway.configs.load import ROOT

LOCK = Path(slipway.__file__).with_name("lock.txt")
COMMIT = "SLIPWAY_COMMIT"  # environment of an image: the commit it was built from
_PACKAGES = ("nemo-slipway", "nemo_toolkit", "megatron-core", "transformer-engine", "torch", "nemo-run")


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def repository(folder: Path | None = None) -> Path | None:
    """The root of the git repository around ``folder`` (default: here) that has a commit, if there is one."""
    root = _git(folder or Path.cwd(), "rev-parse", "--show-toplevel")
    return Path(root) if root and _git(Path(root), "rev-parse", "HEAD") else None


def uncommitted(root: Path) -> list[str]:
    """Files that differ from the commit, and files that git neither tracks nor ignores."""
    return [line[3:] for line in (_git(root, "status", "--porcelain") or "").splitlines()]


def in_commit(root: Path, path: str) -> bool:
    """Whether the last commit of the repository at ``root`` holds the file ``path``."""
    return _git(root, "cat-file", "-e", f"HEAD:{path}") is not None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def source() -> dict[str, Any]:
    """The record of the code of a run, which is stored with it; a process looks once in each folder.

    What cannot be found out starts with "unknown: ".
    """
    return copy.deepcopy(_source_of(Path.cwd(), os.environ.get(COMMIT, "")))


@functools.cache
def _source_of(folder: Path, commit: str) -> dict[str, Any]:
    root = repository(folder)
    built_from = commit or f"unknown: this is no git repository, and {COMMIT} is not set"
    return {
        "commit": _git(root, "rev-parse", "HEAD") if root else built_from,
        "uncommitted": len(uncommitted(root)) if root else 0,
        "lock_sha256": hashlib.sha256(LOCK.read_bytes()).hexdigest()
        if LOCK.is_file()
        else f"unknown: there is no {LOCK}",
        "versions": {p: v for p in _PACKAGES if (v := _version(p))},
    }


def require_supported_pair() -> None:
    """Refuse a Megatron-Core that NeMo 2.7.3 cannot train with, before it fails in the optimizer's constructor.

    Raises:
        Refusal: 0.16 dropped arguments that NeMo passes to its optimizer; 0.17 no longer imports.
    """
    wanted = yaml.safe_load((ROOT / "supported.yaml").read_text())["packages"]
    found = version("megatron-core")
    if found.split(".")[:2] != wanted["megatron-core"].split(".")[:2]:
        raise Refusal(
            f"megatron-core {found} does not train with nemo_toolkit {version('nemo_toolkit')}: "
            f"{wanted['megatron-core']} does",
            f"pip install megatron-core=={wanted['megatron-core']}",
        )
