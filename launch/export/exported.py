"""Build a recipe and write it to a file; train a recipe from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slipway import configs, planner
from slipway.configs import Refusal
from slipway.launch.export.recipe_file import dump, load


def built_recipe(name: str, overrides: list[str]) -> Any:
    """The ``run.Partial`` of a recipe under overrides, complete and legal.

    It is built for this machine's CPU if the recipe is a toy and there is no GPU here.
    """
    from slipway.launch.executors.prepare import require_chosen_data
    from slipway.launch.executors.select import executor_named
    from slipway.recipes import build as builder
    from slipway.recipes.factory import check_data, gpu_here, trains_on_cpu

    resolved = configs.load(name, overrides)
    if not executor_named(resolved.spec.cluster.executor).runs_here:
        require_chosen_data(resolved)
    spec = planner.complete(resolved)
    planner.require_legal(spec)
    cpu = trains_on_cpu(spec) and not gpu_here()
    if not cpu:
        planner.require_fit(spec, f"slipway check {name} shows the nearest layout that fits.")
    check_data(spec)
    return builder.build(spec, cpu=cpu)


def export_recipe(name: str, overrides: list[str], out: Path) -> None:
    """Write the full recipe to ``out``, atomically.

    Raises:
        Refusal: the recipe is illegal, or the file cannot be written.
    """
    text = dump(built_recipe(name, overrides))
    temporary = out.with_name(out.name + ".tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(out)
    except OSError as error:
        raise Refusal(f"{out} cannot be written: {error.strerror}") from None


def train(path: Path) -> None:
    """Train an exported recipe in this process; Lightning starts the other ranks with the same command line.

    Raises:
        Refusal: the file holds no recipe, or the recipe needs GPUs and this machine has none.
    """
    recipe = load(path)
    import nemo_run

    from slipway.recipes import front_door
    from slipway.recipes.factory import require_gpu

    front_door.judge(recipe)
    require_gpu(recipe.trainer.accelerator)
    nemo_run.run(recipe, direct=True)
