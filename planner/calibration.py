"""The fitted constants that apply to a spec: one set for a GPU and a software generation, in configs/calibration."""

from __future__ import annotations

import functools
from typing import Any

from slipway.configs import Calibration, Gpu, Refusal, Spec, nearest
from slipway.configs.files import path_of, read

DEFAULTS = "defaults"  # the name of the constants that are fitted to no GPU: the defaults of configs.Calibration


def fitted_part(gpu: Gpu) -> str:
    """The GPU whose constants apply to ``gpu``: itself, else the one that its file names, else empty."""
    return next((part for part in (gpu.name, gpu.calibrated_as) if part and path_of("calibration", part)), "")


def _file(part: str) -> dict[str, Any]:
    return read("calibration", part) if part else {"default": "", "generations": {}}


def calibration(gpu: Gpu, software: str = "") -> Calibration:
    """Constants of ``gpu`` under ``software``, or under the GPU's default generation. Their name says whose they are.

    Raises:
        Refusal: no constants are fitted to this software generation on this GPU.
    """
    part = fitted_part(gpu)
    fitted = _file(part)
    name = software or fitted["default"]
    if not name:
        return Calibration(name=DEFAULTS)
    if name not in fitted["generations"]:
        raise Refusal(f"software={name} is not fitted for {gpu.name}; {nearest(name, fitted['generations'])}")
    return _constants(part, name)


@functools.cache
def _constants(part: str, generation: str) -> Calibration:
    return Calibration(**{"name": f"{part}/{generation}", **_file(part)["generations"][generation]})


def calibration_for(spec: Spec) -> Calibration:
    """Constants of the spec's GPU and software generation."""
    return calibration(spec.gpu, spec.software)


def calibration_or_nearest(gpu: Gpu, software: str) -> Calibration:
    """As :func:`calibration`, but an unfitted generation falls back to the GPU's default."""
    known = _file(fitted_part(gpu))["generations"]
    return calibration(gpu, software if software in known else "")


def calibration_warning(gpu: Gpu, constants: Calibration) -> str:
    """Why the times that ``constants`` predict for ``gpu`` are uncertain; empty where they are fitted to it."""
    if constants.name == DEFAULTS:
        return f"no published run calibrates {gpu.name}: its times use default constants that are fitted to no GPU"
    if fitted_part(gpu) != gpu.name:
        return f"no published run calibrates {gpu.name}: its times use the constants of {constants.name}"
    # A source is stated for constants that were not fitted to this GPU and software: it names the lender.
    return f"the constants {constants.name} are {constants.source}" if constants.source else ""
