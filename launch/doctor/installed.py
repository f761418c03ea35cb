"""Versions of installed packages, and NVIDIA's image, without importing any of them."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str) -> str:
    """The version without its local part, as 2.13.0 of 2.13.0+cpu; empty if the package is not installed."""
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return ""


def nvidia_image() -> str:
    """The version of the NVIDIA image that this process runs in, from its environment; empty outside of one."""
    return os.environ.get("NEMO_VERSION") or os.environ.get("NVIDIA_PYTORCH_VERSION", "")
