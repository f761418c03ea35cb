"""Whether a run on this machine that ended is started again by itself: after a hang, or the death of a rank."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from slipway.configs import Spec
from slipway.configs.schema import Resilience
from slipway.recipes.runtime.checkpoint_files import held
from slipway.recipes.runtime.run_files import FAILURE

MOST = 3  # starts in a row that bring no new checkpoint
_OUTSIDE = ("Hang", "was killed by ")  # errors that a new start can mend; what Python raises comes again


@dataclass
class Restarts:
    """The starts of one run so far."""

    spec: Spec
    run_dir: Path
    in_vain: int = 0
    step: int = -1

    def reason(self) -> str:
        """Why the run starts again, in a few words; empty: it does not."""
        if self.spec.run.resilience is not Resilience.restart or not self.spec.run.resume:
            return ""
        try:
            failure = json.loads((self.run_dir / FAILURE).read_text())
            error, message = str(failure["error"]), str(failure["message"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        step = held(self.run_dir / "checkpoints").step
        self.in_vain = 0 if step > self.step else self.in_vain + 1
        self.step = step
        return message if error.startswith(_OUTSIDE) and self.in_vain < MOST else ""
