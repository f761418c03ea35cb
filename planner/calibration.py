"""The fitted constants that apply to a spec: one set for a GPU and a software generation, in configs/calibration."""

from __future__ import annotations

import functools
from typing import Any

from slipway.configs import Calibration, Refusal, Spec, nearest
from slipway.configs.files import ROOT, read

# A GPU that no published run was measured on uses the constants of the one that is most like it.
NEAREST_PART = {"h200": "h100", "a100_40gb": "a100"}
DEFAULTS = "defaults"  # the name of the constants that are fitted to no GPU: the defaults of configs.Calibration


def fitted_part(gpu: str) -> str:
    """The GPU whose constants apply to ``gpu``: itself, the one most like it, or empty where there is neither."""
    for part in (gpu, NEAREST_PART.get(gpu, "")):
        if part and (ROOT / "calibration" / f"{part}.yaml").is_file():
            return part
    return ""


@functools.cache
def _file(gpu: str) -> dict[str, Any]:
    part = fitted_part(gpu)
    if not part:
        return {"default": "", "generations": {}}
    return read("calibration", part)


def generations(gpu: str) -> list[str]:
    """The software generations that constants exist for."""
    return sorted(_file(gpu)["generations"])


@functools.cache
def calibration(gpu: str, software: str = "") -> Calibration:
    """Constants of ``gpu`` under ``software``, or under the GPU's default generation. Their name says whose they are.

    Raises:
        Refusal: no constants are fitted to this software generation on this GPU.
    """
    fitted = _file(gpu)
    name = software or fitted["default"]
    if not name:
        return Calibration(name=DEFAULTS)
    if name not in fitted["generations"]:
        raise Refusal(f"software={name} is not fitted for {gpu}; {nearest(name, fitted['generations'])}")
    return Calibration(**{"name": f"{fitted_part(gpu)}/{name}", **fitted["generations"][name]})


def calibration_for(spec: Spec) -> Calibration:
    """Constants of the spec's GPU and software generation."""
    return calibration(spec.gpu.name, spec.software)


def calibration_or_nearest(gpu: str, software: str) -> Calibration:
    """As :func:`calibration`, but an unfitted generation falls back to the GPU's default."""
    known = _file(gpu)["generations"]
    return calibration(gpu, software if software in known else "")


def calibration_warning(gpu: str, constants: Calibration) -> str:
    """Why the times that ``constants`` predict for ``gpu`` are uncertain; empty where they are fitted to it."""
    if constants.name == DEFAULTS:
        return f"no published run calibrates {gpu}: its times use default constants that are fitted to no GPU"
    if fitted_part(gpu) != gpu:
        return f"no published run calibrates {gpu}: its times use the constants of {constants.name}"
    # A source is stated for constants that were not fitted to this GPU and software: it names the lender.
    return f"the constants {constants.name} are {constants.source}" if constants.source else ""
