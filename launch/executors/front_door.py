"""Every cluster as ``run.executor=NAME`` of the ``nemo`` command."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from typing import Any

import nemo_run as run

from slipway import configs
from slipway.configs import Refusal
from slipway.launch.executors.packaging import packager
from slipway.launch.executors.select import for_spec


def register() -> None:
    """Register every cluster as a factory of ``run.Executor``."""
    for name in configs.cluster_names():
        run.cli.factory(_factory(name), target=run.Executor, name=name)


def _factory(cluster: str) -> Any:
    def executor(nodes: int | None = None) -> run.Config[run.Executor]:
        try:
            return at_front_door(cluster, nodes).to_config()
        except Refusal as refusal:
            print(f"slipway: {refusal.sentence()}", file=sys.stderr)
            sys.stderr.flush()
            os._exit(2)  # NeMo-Run swallows the exceptions of a nested factory and would continue without the executor

    executor.__name__ = cluster
    executor.__doc__ = f"The cluster {cluster} as an executor."
    return executor


def at_front_door(cluster: str, nodes: int | None = None) -> run.Executor:
    """The executor of ``cluster`` for the recipe on this process's command line.

    Raises:
        Refusal: the executor and the recipe would start different numbers of nodes.
    """
    from slipway import planner
    from slipway.recipes.factory import absolute, overrides

    arguments = sys.argv[1:]
    found = _recipe_in(arguments)
    if found is None or found[0] not in configs.recipe_names():
        raise Refusal(
            f"run.executor={cluster} is for Slipway's recipes", "Name one with --factory, as slipway list shows them."
        )
    name, options = found
    nodes = nodes or _whole_number(arguments, "run.executor.nodes", "executor.nodes")
    resolved = configs.load(name, [f"cluster={cluster}", *overrides(name, options)])
    of_recipe = _whole_number(arguments, "trainer.num_nodes") or resolved.spec.num_nodes
    if nodes is not None and nodes != of_recipe:
        raise Refusal(
            f"run.executor={cluster} would start {nodes} nodes and the recipe {of_recipe}",
            f"Set the nodes in the recipe only: --factory '{name}(num_nodes={nodes})' run.executor={cluster}.",
        )
    spec = absolute(planner.complete(resolved))
    executor = for_spec(spec)
    Path(spec.run.dir).mkdir(parents=True, exist_ok=True)  # pyxis mounts only folders that exist
    executor.packager = packager()
    return executor


def _recipe_in(arguments: list[str]) -> tuple[str, dict[str, Any]] | None:
    """The recipe that ``--factory`` names, and its arguments."""
    text = ""
    for i, argument in enumerate(arguments):
        if argument == "--factory" and i + 1 < len(arguments):
            text = arguments[i + 1]
        elif argument.startswith("--factory="):
            text = argument.partition("=")[2]
    name, _, rest = text.strip("\"'").partition("(")
    if not name:
        return None
    options: dict[str, Any] = {}
    for pair in filter(None, rest.rstrip(")").split(",")):
        key, _, value = pair.partition("=")
        try:
            options[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            options[key.strip()] = value.strip()
    return name.rpartition(".")[2], options


def _whole_number(arguments: list[str], *keys: str) -> int | None:
    """The value of the first of ``keys`` that is given as ``key=NUMBER``."""
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in keys and value.isdigit():
            return int(value)
    return None
