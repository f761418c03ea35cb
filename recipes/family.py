"""A model family: what its models have in common, and the factories of its recipes, made from configs/recipe."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slipway import configs
from slipway.configs import Refusal
from slipway.recipes.factory import factory


@dataclass(frozen=True)
class Family:
    """One family of models, in a module of this package that bears its name and calls it ``FAMILY``.

    Attributes:
        name: the module, and the ``family`` of the models in configs/model.
        nemo_model: the Lightning module in ``nemo.collections.llm`` that trains them.
        layers: where NeMo's layers are wrong: a module of ``runtime``, whose ``layer_spec`` makes them.
        windows_by_frequency: whether ``window_every`` reaches Megatron-Core as a frequency; else NeMo's layers have it.
    """

    name: str
    nemo_model: str
    layers: str = ""
    windows_by_frequency: bool = True

    def layer_spec(self) -> Callable[..., Any] | None:
        """What makes the layers, where NeMo's are wrong. Imports Megatron-Core."""
        if not self.layers:
            return None
        module = importlib.import_module(f"slipway.recipes.runtime.{self.layers}")
        return module.layer_spec  # type: ignore[no-any-return]

    def recipes(self) -> list[str]:
        """The recipes of the family's models."""
        return [name for name in configs.recipe_names() if self._has(name)]

    def _has(self, recipe: str) -> bool:
        return configs.headline(recipe)[0].family == self.name

    def factory(self, name: str) -> Callable[..., Any]:
        """The factory of one of the family's recipes; serves as the module's ``__getattr__``."""
        if name not in configs.recipe_names() or not self._has(name):
            raise AttributeError(f"module 'slipway.recipes.{self.name}' has no recipe {name!r}")
        return factory(name)


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        Refusal: the planner knows models of the family, but no recipe trains them.
    """
    try:
        found = importlib.import_module(f"slipway.recipes.{name}").FAMILY
    except (ModuleNotFoundError, AttributeError):
        found = None
    if not isinstance(found, Family):
        raise Refusal(
            f"models of the family {name} can be planned for but not trained by these recipes",
            "Choose a model that slipway list shows.",
        )
    return found
