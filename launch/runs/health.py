"""What a run's measurements say is wrong although it goes on: a loss that is no number, data that come too slowly."""

from __future__ import annotations

import numpy as np

from slipway.launch.runs.read import Run
from slipway.launch.runs.series import LOSS, STEP_TIME
from slipway.launch.runs.summary import WARM_UP_STEPS
from slipway.recipes.runtime.checkpoint_files import step_of
from slipway.recipes.runtime.run_files import DATA_TIME

STALLED = 0.1  # of the step time, spent waiting for data


def notes(run: Run) -> list[str]:
    """One sentence for each fault."""
    return [note for note in (_loss_note(run), _data_note(run)) if note]


def _loss_note(run: Run) -> str:
    loss = run.get(LOSS)
    bad = loss.steps[~np.isfinite(loss.values)]
    if not len(bad):
        return ""
    first = int(bad[0])
    clean = [name for name in run.checkpoints if not name.endswith("-unfinished") and step_of(run.path / name) < first]
    resume = f"{clean[-1]} is the last checkpoint before it" if clean else "no checkpoint is older"
    return f"the loss is not finite since step {first}; {resume}"


def _data_note(run: Run) -> str:
    waits, times = (run.of_last_start(tag, WARM_UP_STEPS).values for tag in (DATA_TIME, STEP_TIME))
    if not len(waits) or not len(times):
        return ""
    wait, step = float(np.median(waits)), float(np.median(times))
    if wait < STALLED * (step + wait):
        return ""
    waited = f"it waits {wait:.3g} s a step for its data, beside {step:.3g} s of work (data-stall)"
    return f"{waited}: a faster file system, or more data workers"
