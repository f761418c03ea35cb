"""Every cluster as ``run.executor=NAME`` of the ``nemo`` command.

NeMo-Run 0.4.0 builds an executor before the recipe that it starts, and apart from it. Here the recipe comes first: it
is built for the cluster and judged after its overrides, and the executor starts exactly the ranks that it then has.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fiddle as fdl
import nemo_run as run
from nemo_run.cli.api import RunContext
from nemo_run.cli.cli_parser import parse_cli_args

from slipway import configs
from slipway.configs import Refusal, Spec
from slipway.configs.errors import exit_on_refusal
from slipway.configs.files import site_file
from slipway.launch.executors.packaging import packager
from slipway.launch.executors.prepare import require_chosen_data, require_committed, require_shipped, with_accelerator
from slipway.launch.executors.select import executor_named, for_spec
from slipway.recipes import front_door
from slipway.recipes.factory import surroundings


@dataclass(frozen=True)
class Order:
    """What ``run.executor`` asks for: a cluster, and NeMo-Run's ``run.executor.KEY=VALUE`` without their prefix."""

    cluster: str
    settings: tuple[str, ...] = ()


def register() -> None:
    """Register every cluster as a factory of ``run.Executor``, and let the ``nemo`` command complete it."""
    for name in configs.cluster_names():
        run.cli.factory(_factory(name), target=run.Executor, name=name)
    install()


def _factory(cluster: str) -> Any:
    def executor() -> run.Config[run.Executor]:
        return run.Config(run.LocalExecutor)  # the nemo command replaces it once it knows the recipe

    executor.__name__ = cluster
    executor.__doc__ = f"The cluster {cluster} as an executor."
    return executor


@functools.cache
def install() -> None:
    """Wrap NeMo-Run: the executor of a cluster of ours is made from the recipe, after its overrides."""
    front_door.install()
    parse_executor, parse = RunContext.parse_executor, RunContext.parse_fn

    @functools.wraps(parse_executor)
    def ordered(self: RunContext, name: str, *settings: str) -> Any:
        if name not in configs.cluster_names() and not site_file(name):
            return parse_executor(self, name, *settings)
        self.order = Order(name, settings)
        return run.Config(run.LocalExecutor)

    @functools.wraps(parse)
    def parsed(self: RunContext, fn: Any, args: list[str], **options: Any) -> Any:
        order: Order | None = getattr(self, "order", None)
        if order is None:
            return parse(self, fn, args, **options)
        with exit_on_refusal(), _towards(order.cluster):
            task = parse(self, fn, args, **options)
            self.executor = executor_of(task, order, dryrun=self.dryrun)
        return task

    RunContext.parse_executor, RunContext.parse_fn = ordered, parsed


@contextlib.contextmanager
def _towards(cluster: str) -> Iterator[None]:
    """Let the factory build its recipe for ``cluster``: its GPU, its nodes, its ranks."""

    def on_cpu(spec: Spec) -> bool:
        return with_accelerator(spec).cluster.accelerator == "cpu"

    def require(resolved: configs.Resolved) -> None:
        if not executor_named(resolved.spec.cluster.executor).runs_here:
            require_chosen_data(resolved)

    around = surroundings.get()
    overrides = (f"cluster={cluster}", *around.overrides)
    token = surroundings.set(replace(around, overrides=overrides, on_cpu=on_cpu, require=require))
    try:
        yield
    finally:
        surroundings.reset(token)


def executor_of(task: Any, order: Order, *, dryrun: bool = False) -> run.Executor:
    """The executor that starts the ranks of ``task``, with the settings of ``order``.

    Args:
        dryrun: nothing is submitted, so that the code may be uncommitted and no folder is made.

    Raises:
        Refusal: the task is no recipe of Slipway, the settings contradict it, or the job would not find its code.
    """
    from slipway.recipes.readback import promised, record_callback

    callback = record_callback(list(getattr(getattr(task, "trainer", None), "callbacks", None) or []))
    if callback is None:
        raise Refusal(
            f"run.executor={order.cluster} is for Slipway's recipes",
            "Name one with --factory, as slipway list shows them.",
        )
    spec = with_accelerator(promised(callback))
    made = for_spec(spec)
    executor = fdl.build(parse_cli_args(made.to_config(), list(order.settings))) if order.settings else made
    _require_same_ranks(made, executor, order.cluster, spec)
    require_shipped(spec)
    if not dryrun:
        require_committed()
        Path(spec.run.dir).mkdir(parents=True, exist_ok=True)  # pyxis mounts only folders that exist
    executor.packager = packager(check=not dryrun)
    return executor


def _require_same_ranks(made: run.Executor, executor: run.Executor, cluster: str, spec: Spec) -> None:
    asked, needed = getattr(executor, "nodes", 1), getattr(made, "nodes", 1)
    if asked != needed:
        raise Refusal(
            f"run.executor={cluster} would start {asked} nodes and the recipe {needed}",
            f"Set the nodes in the recipe only: --factory '{spec.name}(num_nodes={asked})' run.executor={cluster}.",
        )
    asked, needed = getattr(executor, "ntasks_per_node", 1), getattr(made, "ntasks_per_node", 1)
    if asked != needed:
        raise Refusal(
            f"run.executor={cluster} would start {asked} ranks a node and the recipe {needed}",
            f"Set them in the recipe only: --factory '{spec.name}(num_gpus_per_node={asked})'.",
        )
