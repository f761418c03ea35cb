"""Which fitted constants apply: one set for a GPU as one software generation drives it, in configs/calibration."""

from __future__ import annotations

import functools
from typing import Any

import yaml

from slipway.configs import Calibration, Refusal, Spec, nearest
from slipway.configs.load import ROOT

# A part for which nothing has been fitted borrows from the one most like it.
NEAREST_PART = {"h200": "h100", "a100_40gb": "a100"}


@functools.cache
def _file(gpu: str) -> dict[str, Any]:
    path = ROOT / "calibration" / f"{gpu}.yaml"
    if not path.is_file():
        return _file(NEAREST_PART[gpu]) if gpu in NEAREST_PART else {"default": "", "generations": {}}
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def generations(gpu: str) -> list[str]:
    """The software generations that constants exist for."""
    return sorted(_file(gpu)["generations"])


@functools.cache
def calibration(gpu: str, software: str = "") -> Calibration:
    """Constants of ``gpu`` under ``software``; the part's default generation if none is named.

    Raises:
        Refusal: a software generation that was never fitted for this part.
    """
    held = _file(gpu)
    name = software or held["default"]
    if not name:
        return Calibration(name="defaults")
    if name not in held["generations"]:
        raise Refusal(f"software={name} is not fitted for {gpu}; {nearest(name, held['generations'])}")
    return Calibration(**{"name": f"{gpu}/{name}", **held["generations"][name]})


def calibration_for(spec: Spec) -> Calibration:
    return calibration(spec.gpu.name, spec.software)


def calibration_or_nearest(gpu: str, software: str) -> Calibration:
    """As :func:`calibration`, but an unfitted generation falls back to the part's default."""
    known = _file(gpu)["generations"]
    return calibration(gpu, software if software in known else "")
