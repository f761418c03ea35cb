"""What the ``nemo`` command does with a recipe after its overrides: NeMo-Run applies them behind the factory's back.

NeMo-Run 0.4.0 has no place where a package can see a task between its overrides and its start (plugins are the user's).
Its ``RunContext.parse_fn``, which applies the overrides before a dry run, a submission or a start, and its ``run`` are
therefore wrapped in the process of the ``nemo`` command, and nowhere else.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

import nemo_run
from nemo_run.cli.api import RunContext

from slipway.configs import Refusal
from slipway.configs.errors import exit_on_refusal
from slipway.recipes.factory import require_gpu
from slipway.recipes.runtime.start import pretrain

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


def judge(task: Any) -> None:
    """Judge a recipe of ours after its overrides, and print what they changed; other tasks pass.

    Raises:
        SystemExit: with exit code 2, after one sentence.
    """
    from slipway.recipes.readback import judge_recipe, record_callback

    callbacks = getattr(getattr(task, "trainer", None), "callbacks", None)
    ours = getattr(task, "__fn_or_cls__", None) is pretrain
    if not ours and not (isinstance(callbacks, list) and record_callback(callbacks)):
        return

    with exit_on_refusal():
        judged = judge_recipe(task)
    if judged.changed:
        _note(f"changed behind the factory: {', '.join(judged.changed)}")
    if judged.unjudged:
        _note(f"warning: no rule and no memory estimate covers {', '.join(judged.unjudged)}")


def _note(text: str) -> None:
    print(f"slipway: {text}", file=sys.stderr, flush=True)


def install() -> None:
    """Wrap NeMo-Run: a recipe is judged after its overrides, and refused where it would train without its GPUs."""
    start, parse = nemo_run.run, RunContext.parse_fn

    @functools.wraps(start)
    def guarded(fn_or_script: Any, *args: Any, **options: Any) -> Any:
        if options.get("executor") is None and hasattr(fn_or_script, "trainer"):
            with exit_on_refusal():
                require_gpu(fn_or_script.trainer.accelerator)
                allocate_for_graphs(fn_or_script.model.config)
        return start(fn_or_script, *args, **options)

    @functools.wraps(parse)
    def parsed(self: RunContext, fn: Any, args: list[str], **options: Any) -> Any:
        task = parse(self, fn, args, **options)
        judge(task)
        return task

    nemo_run.run, RunContext.parse_fn = guarded, parsed
