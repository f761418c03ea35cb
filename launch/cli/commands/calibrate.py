"""``slipway calibrate``: the planner's constants for one's own cluster, from a few measured steps."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import Answer, Section, argument, command
from slipway.launch.cli.printing import Style, Table, Terminal, plural

if TYPE_CHECKING:
    from slipway.configs import Gpu
    from slipway.planner.calibrate import Calibrated, Measurement

MOST_MOVED = 6  # constants that are listed
SHOWN_DEVIATION = 0.1  # of an uncertainty: a constant that moved less is not listed
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Fitted(Answer):
    """The constants that were written, and how well they explain what was measured."""

    name: str
    gpu: str
    started_from: str
    measured: list[Measurement]
    found: Calibrated
    path: Path

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "gpu": self.gpu,
            "started_from": self.started_from,
            "path": str(self.path),
            "spread": self.found.constants.spread,
            "measurements": [
                {"name": each.name, "step_time_s": each.step_time_s, "error_before": before, "error_after": after}
                for each, before, after in zip(self.measured, *self._errors(), strict=True)
            ],
            "constants": [dict(vars(moved)) for moved in self.found.moved],
        }

    def _errors(self) -> tuple[list[float], list[float]]:
        """Predicted over measured speed, less one, before and after."""
        before, after = ([math.expm1(error) for error in errors] for errors in (self.found.before, self.found.after))
        return before, after

    def show(self, terminal: Terminal) -> None:
        table = Table(("measured", "step s", "speed, predicted before", "after"), right=frozenset({1, 2, 3}))
        for each, before, after in zip(self.measured, *self._errors(), strict=True):
            table.add(each.name, f"{each.step_time_s:.3f}", f"{before:+.1%}", f"{after:+.1%}")
        terminal.table(table)
        table = Table(("constant", "shipped", "yours", "moved, uncertainties"), right=frozenset({1, 2, 3}))
        for moved in self.found.moved[:MOST_MOVED]:
            if abs(moved.deviation) > SHOWN_DEVIATION:
                table.add(moved.name, f"{moved.before:.4g}", f"{moved.after:.4g}", f"{moved.deviation:+.1f}")
        terminal.table(table)
        terminal.line(
            f"wrote {self.path}: {self.gpu}/{self.name} from {plural(len(self.measured), 'measurement')}, started from "
            f"{self.started_from}. On {self.gpu}, check, plan and launch use it from now on; software= chooses others.",
            Style.GOOD,
        )


@command(Section.RESULTS)
@argument("runs", "Runs' folders, training logs of Megatron-LM, or tables that validate reads.", nargs=-1, type=Path)
@click.option("--out", required=True, metavar="NAME", help="The name of the constants; software=NAME chooses them.")
@click.option("--software", default="", metavar="NAME", help="The shipped constants to start from; default: the GPU's.")
def calibrate(runs: tuple[Path, ...], out: str, software: str) -> Answer:
    """Fit the planner's constants to steps of your own cluster.

    The shipped constants are what is expected before, with their uncertainty: a few measurements move them, each as far
    as they ask for it. The result is written below SLIPWAY_CONFIGS, or below ./slipway where that is not set.
    """
    from slipway.configs import Refusal
    from slipway.launch.runs.measurements import measurements
    from slipway.planner.calibrate import calibrate as fit
    from slipway.planner.calibration import calibration, shipped_generations

    if not runs:
        raise click.UsageError("Missing argument 'RUNS...'.")
    if not _NAME.fullmatch(out):
        raise Refusal(f"--out {out} cannot name constants", "Use letters, digits, '-', '_' and '.'.")
    measured = [each for path in runs for each in measurements(path)]
    gpus = {each.spec.gpu.name: each.spec.gpu for each in measured}
    if len(gpus) > 1:
        raise Refusal(f"the measurements are of {' and '.join(sorted(gpus))}", "Calibrate each GPU by itself.")
    [gpu] = gpus.values()
    if out in shipped_generations(gpu):
        raise Refusal(f"--out {out} is the name of constants that are shipped for {gpu.name}", "Choose another name.")
    shipped = calibration(gpu, software, shipped=True)
    source = f"{plural(len(measured), 'measurement')} of one's own: " + ", ".join(sorted({m.name for m in measured}))
    found = fit(measured, shipped, f"{gpu.name}/{out}", source[:MOST_SOURCE])
    return Fitted(out, gpu.name, shipped.name, measured, found, _write(gpu, out, found))


MOST_SOURCE = 400  # characters of a source


def _write(gpu: Gpu, name: str, found: Calibrated) -> Path:
    """Add the constants to the user's own file for this GPU, and make them its default."""
    import yaml

    from slipway.configs import Refusal
    from slipway.configs.files import HERE, OWN_FOLDER, own_folder
    from slipway.planner.calibrate import as_values
    from slipway.planner.calibration import own_generations

    folder = own_folder()
    if folder is None:
        if HERE.exists():
            raise Refusal(f"./{HERE} is not a folder of configuration files", f"Set {OWN_FOLDER} to a folder of yours.")
        folder = HERE
    path = folder / "calibration" / f"{gpu.name}.yaml"
    generations = {**own_generations(gpu), name: as_values(found.constants)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(yaml.safe_dump({"default": name, "generations": generations}, sort_keys=False))
        temporary.replace(path)
    except OSError as error:
        fix = f"Set {OWN_FOLDER} to a folder of yours."
        raise Refusal(f"{path} cannot be written: {error.strerror}", fix) from None
    return path
