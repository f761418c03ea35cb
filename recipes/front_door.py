"""What the ``nemo`` command does with a recipe after its overrides: NeMo-Run applies them behind the factory's back.

NeMo-Run 0.4.0 has no place where a package can see a task between its overrides and its start (plugins are the user's).
Its ``RunContext.parse_fn``, which applies the overrides before a dry run, a submission or a start, and its ``run`` are
therefore wrapped in the process of the ``nemo`` command, and nowhere else.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import nemo_run
from nemo_run.cli.api import RunContext

from slipway import configs
from slipway.configs import Refusal
from slipway.configs.blend import PATH_KEYS
from slipway.configs.errors import exit_on_refusal
from slipway.recipes.factory import require_gpu, surroundings
from slipway.recipes.runtime.start import finetune, pretrain

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


def require_layers_of_import(task: Any) -> None:
    """Require Transformer Engine for ``nemo llm import``: in its absence NeMo builds other layers and loses norms.

    Raises:
        Refusal: there is none.
    """
    from nemo.collections import llm

    imports = getattr(task, "__fn_or_cls__", None) is llm.import_ckpt
    if imports and importlib.util.find_spec("transformer_engine") is None:
        raise Refusal(
            "nemo llm import without Transformer Engine writes checkpoints whose layer norms are lost, without a word",
            "Use slipway weights import FOLDER --out BASE, which needs neither.",
        )


def judge(task: Any) -> None:
    """Judge a recipe of ours after its overrides, and print what they changed; other tasks pass.

    Raises:
        SystemExit: with exit code 2, after one sentence.
    """
    from slipway.recipes.readback import judge_recipe, record_callback

    with exit_on_refusal():
        require_layers_of_import(task)
    callbacks = getattr(getattr(task, "trainer", None), "callbacks", None)
    ours = getattr(task, "__fn_or_cls__", None) in (pretrain, finetune)
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


# Arguments of the nemo command that decide which data module a recipe has, so that its factory must know them.
_DATA = ("data=mock", *(f"data.{key}=" for key in PATH_KEYS), "data.validation_sets")


@contextlib.contextmanager
def _data_of(context: RunContext, args: list[str]) -> Iterator[list[str]]:
    """Give the data among the arguments to the factory, if it is one of ours; yields the other arguments."""
    name = str(context.factory or "").partition("(")[0].rpartition(".")[2]
    data = [each for each in args if each.startswith(_DATA)] if name in configs.recipe_names() else []
    around = surroundings.get()
    token = surroundings.set(replace(around, overrides=(*around.overrides, *data)))
    try:
        yield [each for each in args if each not in data]
    finally:
        surroundings.reset(token)


@functools.cache
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
        with _data_of(self, args) as rest:
            task = parse(self, fn, rest, **options)
        judge(task)
        return task

    nemo_run.run, RunContext.parse_fn = guarded, parsed
