"""Recipes that stand for the others: one of each kind, because sizes of a family differ in numbers alone."""

from __future__ import annotations

import functools

from slipway import configs


@functools.cache
def one_of_each_kind() -> tuple[str, ...]:
    """The first recipe of each family with experts, without, with tied embeddings and without."""
    kinds: dict[tuple[object, ...], str] = {}
    for name in configs.recipe_names():
        model = configs.headline(name)[0]
        kinds.setdefault((model.family, model.is_moe, model.tied, name.endswith("_tiny")), name)
    return tuple(kinds.values())
