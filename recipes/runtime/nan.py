"""What a run says when its loss or a gradient is not a number, and when it starts again. No torch, no NeMo."""

from __future__ import annotations

import json
from pathlib import Path

from slipway.recipes.runtime.checkpoint_files import held
from slipway.recipes.runtime.run_files import FAILURE

NAN = "NaN"  # the error in the record of a failure
_ADVICE = (
    "Lower the learning rate (optim.lr= with run.extend_schedule=true), or take other batches from there on: run.seed= "
    "draws another order of the data"
)


def diverged(run_dir: Path, step: int) -> str:
    """Why the run ended, and from where it can go on.

    Args:
        step: the one that was not a number, as the names of checkpoints count steps.
    """
    found = held(run_dir / "checkpoints")
    if found.newest is None:
        clean = "no checkpoint was saved before it"
    else:
        clean = f"the last checkpoint before it is {found.newest.name}"
    return f"the loss or a gradient is not a number (NaN or infinite) in step {step}; {clean}. {_ADVICE}."


def after_nan(run_dir: Path) -> str:
    """What to say where the last start in this folder ended so; empty where it did not."""
    try:
        failure = json.loads((run_dir / FAILURE).read_text())
        if failure["error"] != NAN:
            return ""
        step = int(failure["step"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""
    return (
        f"the last start of this run ended in step {step}, whose loss or gradient was not a number; the same batches "
        f"with the same settings give it again. {_ADVICE}."
    )
