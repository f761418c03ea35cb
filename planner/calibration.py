"""The fitted constants that apply to a spec: one set for a GPU and a software generation, in configs/calibration."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from slipway.configs import Calibration, Gpu, Refusal, Spec, nearest
from slipway.configs.files import ROOT, content_of, path_of

DEFAULTS = "defaults"  # the name of the constants that are fitted to no GPU: the defaults of configs.Calibration


def fitted_part(gpu: Gpu) -> str:
    """The GPU whose shipped constants apply to ``gpu``: itself, else the one that its file names, else empty."""
    return next((part for part in (gpu.name, gpu.calibrated_as) if part and _shipped_path(part).is_file()), "")


def _shipped_path(part: str) -> Path:
    return ROOT / "calibration" / f"{part}.yaml"


def own_path(gpu: Gpu) -> Path | None:
    """The user's own file of constants for a GPU, which ``slipway calibrate`` writes; None where there is none."""
    path = path_of("calibration", gpu.name)
    return None if path is None or path.is_relative_to(ROOT) else path


def shipped_generations(gpu: Gpu) -> dict[str, Any]:
    """The shipped constants that apply to a GPU, by software generation."""
    part = fitted_part(gpu)
    found: dict[str, Any] = content_of(_shipped_path(part))["generations"] if part else {}
    return found


def own_generations(gpu: Gpu) -> dict[str, Any]:
    """The user's own constants for a GPU, by the name that ``slipway calibrate`` gave them."""
    path = own_path(gpu)
    found: dict[str, Any] = content_of(path.absolute())["generations"] if path else {}
    return found


def calibration(gpu: Gpu, software: str = "", *, shipped: bool = False) -> Calibration:
    """Constants of ``gpu`` under ``software``, or the user's own, or those of the GPU's default generation.

    Args:
        shipped: leave out the user's own.

    Raises:
        Refusal: no constants are fitted to this software generation on this GPU.
    """
    part, own = fitted_part(gpu), None if shipped else own_path(gpu)
    name = software
    if not name and own:
        name = str(content_of(own.absolute())["default"])
    if not name and part:
        name = str(content_of(_shipped_path(part))["default"])
    if not name:
        return Calibration(name=DEFAULTS)
    if name in (ours := shipped_generations(gpu)):
        return _constants(_shipped_path(part), part, name)
    if own is None or name not in own_generations(gpu):
        known = [*ours, *(own_generations(gpu) if own else [])]
        raise Refusal(f"software={name} is not fitted for {gpu.name}; {nearest(name, known)}")
    return _constants(own.absolute(), gpu.name, name)


@functools.cache
def _constants(path: Path, part: str, generation: str) -> Calibration:
    return Calibration(**{"name": f"{part}/{generation}", **content_of(path)["generations"][generation]})


def where(gpu: Gpu, constants: Calibration) -> str:
    """The file or folder that holds the constants of a GPU, as messages name it."""
    return str(own_path(gpu)) if is_own(gpu, constants) else "configs/calibration"


def is_own(gpu: Gpu, constants: Calibration) -> bool:
    """Whether the constants are the user's, by ``slipway calibrate``."""
    return constants.name.partition("/")[2] in own_generations(gpu)


def calibration_for(spec: Spec) -> Calibration:
    """Constants of the spec's GPU and software generation."""
    return calibration(spec.gpu, spec.software)


def calibration_or_nearest(gpu: Gpu, software: str) -> Calibration:
    """As :func:`calibration`, but an unfitted generation falls back to the GPU's default."""
    known = software in shipped_generations(gpu) or software in own_generations(gpu)
    return calibration(gpu, software if known else "")


def calibration_warning(gpu: Gpu, constants: Calibration) -> str:
    """Why the times that ``constants`` predict for ``gpu`` are uncertain; empty where they are fitted to it."""
    if is_own(gpu, constants):
        return ""
    if constants.name == DEFAULTS:
        return f"no published run calibrates {gpu.name}: its times use default constants that are fitted to no GPU"
    if fitted_part(gpu) != gpu.name:
        return f"no published run calibrates {gpu.name}: its times use the constants of {constants.name}"
    # A source is stated for constants that were not fitted to this GPU and software: it names the lender.
    return f"the constants {constants.name} are {constants.source}" if constants.source else ""
