"""How far a predicted step time may be from a measured one, by published runs that were predicted without their model.

configs/calibration/errors.csv has, for groups of published runs, the half-width within which 68 % of ln(predicted /
measured) lie. A group is a GPU and software generation, split into dense models and models with experts, and further by
the format of the matrix products. The narrowest group that holds runs like the given one applies.
"""

from __future__ import annotations

import csv
import functools
import math
from dataclasses import dataclass

from slipway.configs import Calibration, Spec
from slipway.configs.files import ROOT
from slipway.configs.schema import Gemm
from slipway.planner.calibration import is_own

ERRORS = ROOT / "calibration" / "errors.csv"
COLUMNS = ("gpu", "software", "experts", "format", "rows", "models", "half_width")
"""Of :data:`ERRORS`. An empty ``software`` or ``format`` is any."""
ENOUGH_ROWS = 10
"""Published runs below which a band is thin evidence."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """68 % of predictions lie within ``half_width`` of the measured speed, in logarithms.

    ``rows`` published runs of ``models`` models say so; ``of`` names them. Where the constants are the user's own, the
    half-width is theirs, and ``of`` is empty.
    """

    half_width: float
    rows: int
    models: int
    of: str

    @property
    def factor(self) -> float:
        """The upper end of the interval over the prediction."""
        return math.exp(self.half_width)


def format_of(spec: Spec) -> str:
    """The format of matrix products as the groups tell it apart: bf16 (or wider), fp8 or fp4."""
    return (Gemm.bf16 if spec.precision.gemm is Gemm.fp32 else spec.precision.gemm).value


def band_of(spec: Spec, constants: Calibration) -> Band:
    """The band of a prediction that was made with ``constants``."""
    gpu, _, software = constants.name.partition("/")
    experts = "yes" if spec.model.is_moe else "no"
    groups = _groups()
    any_gpu = ("", "", experts, "")
    if (gpu, software) in _fitted():
        narrowest = ((gpu, software, experts, format_of(spec)), (gpu, software, experts, ""), (gpu, "", experts, ""))
        return next(groups[key] for key in (*narrowest, any_gpu) if key in groups)
    if is_own(spec.gpu, constants):  # asked last: it looks at the disk, and a search asks for many bands
        return Band(half_width=constants.spread, rows=0, models=0, of="")
    return groups[any_gpu]


def band_warning(spec: Spec, constants: Calibration) -> str:
    """Why the interval of a prediction rests on little; empty where ten runs or more like it are published."""
    band = band_of(spec, constants)
    if not band.of or band.rows >= ENOUGH_ROWS:
        return ""
    runs = f"{band.rows} published runs" if band.rows > 1 else "one published run"
    return (
        f"the 68 % interval of the step time rests on {runs} of {band.of}: "
        f"it is widened to a factor of {band.factor:.2f}"
    )


def described(gpu: str, software: str, experts: str, form: str) -> str:
    """A group in words."""
    models = "models with experts" if experts == "yes" else "dense models"
    return " ".join(
        filter(None, [models, form and f"in {form}", f"on {gpu or 'any GPU'}", software and f"under {software}"])
    )


@functools.cache
def _groups() -> dict[tuple[str, str, str, str], Band]:
    with ERRORS.open() as file:
        return {
            (row["gpu"], row["software"], row["experts"], row["format"]): Band(
                half_width=float(row["half_width"]),
                rows=int(row["rows"]),
                models=int(row["models"]),
                of=described(row["gpu"], row["software"], row["experts"], row["format"]),
            )
            for row in csv.DictReader(file)
        }


@functools.cache
def _fitted() -> set[tuple[str, str]]:
    """The GPUs and generations of which there are published runs."""
    return {(gpu, software) for gpu, software, _, _ in _groups() if software}
