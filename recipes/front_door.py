"""What the ``nemo`` command does with a recipe after its overrides: NeMo-Run applies them behind the factory's back.

NeMo-Run 0.4.0 has no place where a package can see a task between its overrides and its start (plugins are the user's),
so its ``run`` is wrapped in the process of the ``nemo`` command, and nowhere else.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import nemo_run

from slipway.configs import Refusal
from slipway.configs.errors import exit_on_refusal
from slipway.recipes.factory import require_gpu

_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
_EXPANDABLE = "expandable_segments:True"


def allocate_for_graphs(config: Any) -> None:
    """Leave out our default of the allocator where CUDA graphs are captured: Megatron-Core asserts that it is not set.

    Raises:
        Refusal: the variable holds expandable segments that are not our default.
    """
    given = os.environ.get(_ALLOCATOR, "")
    captured = getattr(config, "enable_cuda_graph", False) or getattr(config, "cuda_graph_impl", "none") != "none"
    if not captured or _EXPANDABLE not in given:
        return
    if given != _EXPANDABLE:
        raise Refusal(f"{_ALLOCATOR}={given} with CUDA graphs", f"Take {_EXPANDABLE} out of it.")
    del os.environ[_ALLOCATOR]  # CUDA has not started: the allocator reads it then


def install() -> None:
    """Wrap ``nemo_run.run``: a task that would train here is refused if it needs GPUs and there are none."""
    start = nemo_run.run

    @functools.wraps(start)
    def guarded(fn_or_script: Any, *args: Any, **options: Any) -> Any:
        if options.get("executor") is None and hasattr(fn_or_script, "trainer"):
            with exit_on_refusal():
                require_gpu(fn_or_script.trainer.accelerator)
                allocate_for_graphs(fn_or_script.model.config)
        return start(fn_or_script, *args, **options)

    nemo_run.run = guarded
