"""What the ``nemo`` command does with a recipe after its overrides: NeMo-Run applies them behind the factory's back.

NeMo-Run 0.4.0 has no place where a package can see a task between its overrides and its start (plugins are the user's),
so its ``run`` is wrapped in the process of the ``nemo`` command, and nowhere else.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import nemo_run

from slipway.configs import Refusal
from slipway.recipes.factory import require_gpu


def install() -> None:
    """Wrap ``nemo_run.run``: a task that would train here is refused if it needs GPUs and there are none."""
    start = nemo_run.run

    @functools.wraps(start)
    def guarded(fn_or_script: Any, *args: Any, **options: Any) -> Any:
        if options.get("executor") is None and hasattr(fn_or_script, "trainer"):
            try:
                require_gpu(fn_or_script.trainer.accelerator)
            except Refusal as refusal:
                print(f"slipway: {refusal.sentence()}", file=sys.stderr)
                raise SystemExit(2) from None
        return start(fn_or_script, *args, **options)

    nemo_run.run = guarded
