"""The objects that train, after NeMo has merged them.

Lightning and NeMo write over what a recipe sets: the precision plugin's types go into the configurations of model, data
parallelism and optimizer, the strategy's sizes go into the model's configuration, and the optimizer decides whether
data parallelism shards its states. What a recipe promises is therefore read here, not in the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fiddle as fdl
import nemo_run as run


@dataclass(frozen=True)
class Merged:
    """What one run trains with.

    Attributes:
        model: the TransformerConfig of the model.
        ddp: the DistributedDataParallelConfig.
        optimizer: the OptimizerConfig.
        strategy: the MegatronStrategy.
    """

    model: Any
    ddp: Any
    optimizer: Any
    strategy: Any


def merge(recipe: run.Partial) -> Merged:
    """Build the parts of ``recipe`` and connect them as ``llm.pretrain`` and Lightning do; needs no GPU.

    It is what happens before ranks exist: ``optim.connect``, the trainer giving its precision plugin to its strategy,
    and the strategy's ``connect``.
    """
    model, optim = fdl.build(recipe.model), fdl.build(recipe.optim)
    strategy = fdl.build(recipe.trainer.strategy)
    strategy.precision_plugin = fdl.build(recipe.trainer.plugins)
    optim.connect(model)
    strategy.connect(model)
    return Merged(model.config, strategy.ddp_config, model.optim.config, strategy)


def overwritten(recipe: run.Partial, merged: Merged) -> list[str]:
    """What ``recipe`` sets and the merge replaces, one line each: the setting, its value, and what it became."""
    found = []
    for name, given, became in _settings(recipe, merged):
        if given is not became and given != became:
            found.append(f"{name} = {given!r} became {became!r}")
    return found


def _settings(recipe: run.Partial, merged: Merged) -> Iterator[tuple[str, Any, Any]]:
    """Every setting of the recipe's configurations beside its value after the merge."""
    strategy, plugin = recipe.trainer.strategy, recipe.trainer.plugins
    sections = (
        ("model.config", recipe.model.config, merged.model),
        ("strategy.ddp", strategy.ddp, merged.ddp),
        ("optim.config", recipe.optim.config, merged.optimizer),
        ("strategy", strategy, merged.strategy),
    )
    for section, given, became in sections:
        for name, value in _plain(given):
            yield f"{section}.{name}", value, getattr(became, name, value)
    sizes = merged.strategy.parallelism
    for name, value in _plain(strategy):
        if hasattr(sizes, name) and hasattr(merged.model, name):
            yield f"strategy.{name} of the model", value, getattr(merged.model, name)
    for name, value in _plain(plugin):
        for part in ("model", "ddp", "optimizer"):
            if hasattr(getattr(merged, part), name):
                yield f"plugin.{name} of {part}", value, getattr(getattr(merged, part), name)


def _plain(config: run.Config) -> Iterator[tuple[str, Any]]:
    """The arguments that are values: no configuration of a further object, and not None, which leaves it to NeMo."""
    for name, value in config.__arguments__.items():
        if value is not None and not isinstance(value, fdl.Buildable) and not callable(value):
            yield name, value
