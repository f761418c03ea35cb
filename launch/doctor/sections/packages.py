"""Python, the locked packages, and the CUDA versions of torch, Transformer Engine and the driver."""

from __future__ import annotations

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import yaml

from slipway.configs import Spec
from slipway.configs.load import ROOT
from slipway.launch.doctor.commands import printed_by
from slipway.launch.doctor.finding import Finding
from slipway.launch.doctor.installed import installed_version, nvidia_image
from slipway.recipes.runtime.source import LOCK

POSITION = 10
# The oldest Linux driver branch for each CUDA major version (CUDA Toolkit release notes, "minor version compatibility")
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}


def findings(spec: Spec | None) -> list[Finding]:
    return [_python(), *_locked_packages(), *_cuda()]


def _python() -> Finding:
    supported = ((3, 11), (3, 12)) if nvidia_image() else ((3, 11),)
    good = sys.version_info[:2] in supported
    fix = "make setup PYTHON=/path/to/python3.11"
    return Finding("Python", platform.python_version(), "3.11 (3.12 in NVIDIA's image)", good, fix)


def _locked_packages() -> list[Finding]:
    supported = yaml.safe_load((ROOT / "supported.yaml").read_text())
    out = []
    for name, locked in supported["packages"].items():
        found = installed_version(name)
        of_base = bool(nvidia_image()) and name in supported["from_the_base_image"]
        good = bool(found) and (of_base or found == locked)
        wanted = "the base image's own" if of_base else locked
        out.append(Finding(name, found or "not installed", wanted, good, f"pip install -c {LOCK} {name}=={locked}"))
    return out


def _cuda() -> list[Finding]:
    """torch, Transformer Engine and the driver must be of one CUDA major version."""
    try:
        text = Path(str(distribution("torch").locate_file("torch/version.py"))).read_text()
    except (PackageNotFoundError, OSError):
        return []
    built_for = re.search(r"^cuda: .*= '(\d+)\.(\d+)'", text, re.MULTILINE)
    if built_for is None:
        return [Finding("CUDA of torch", "none: a CPU build", "any, to train more than toys", True)]
    major = int(built_for[1])
    return [*_transformer_engine(major), *_driver(major)]


def _transformer_engine(cuda: int) -> list[Finding]:
    engines = [major for major in OLDEST_DRIVER if installed_version(f"transformer-engine-cu{major}")]
    if not engines:
        return []
    version = installed_version(f"transformer-engine-cu{engines[0]}")
    fix = f"pip install transformer-engine-cu{cuda}=={version}"
    good = engines == [cuda]
    return [Finding("Transformer Engine", f"for CUDA {engines[0]}", f"CUDA {cuda}, like torch", good, fix)]


def _driver(cuda: int) -> list[Finding]:
    driver = printed_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if not driver:
        return []
    version = driver.splitlines()[0]
    oldest = OLDEST_DRIVER.get(cuda, 0)
    good = int(version.split(".")[0]) >= oldest
    fix = f"install a driver of branch {oldest}, or torch for an older CUDA"
    return [Finding("driver", version, f"{oldest} or newer for CUDA {cuda}", good, fix)]
