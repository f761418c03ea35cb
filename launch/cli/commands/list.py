"""``slipway list``: the recipes, and what each trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from slipway.launch.cli.answer import Answer, Section, command
from slipway.launch.cli.printing import Table, Terminal


@dataclass(frozen=True)
class Recipe:
    """One recipe's headline. ``parameters`` and ``active`` (per token) count scalars; ``seq_length`` counts tokens."""

    name: str
    family: str
    parameters: int
    active: int
    seq_length: int
    gpu: str
    gpus: int
    trained: bool = True  # False: a model without a recipe, which can be planned for only


@dataclass(frozen=True)
class Recipes(Answer):
    """Recipes, in the order of their names; printed family by family."""

    recipes: tuple[Recipe, ...]

    def as_json(self) -> list[dict[str, Any]]:
        return [dict(vars(recipe)) for recipe in self.recipes]

    def show(self, terminal: Terminal) -> None:
        head = ("recipe", "family", "parameters", "active", "sequence", "default")
        table = Table(head, right=frozenset({2, 3, 4}))
        for recipe in sorted(self.recipes, key=lambda each: (each.family, each.parameters, each.name)):
            table.add(
                recipe.name,
                recipe.family,
                f"{recipe.parameters / 1e9:,.3g} B",
                f"{recipe.active / 1e9:,.3g} B",
                f"{recipe.seq_length:,}",
                f"{recipe.gpus} x {recipe.gpu}" if recipe.trained else "planned only",
            )
        terminal.table(table)


@command(Section.RECIPES)
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option("--all", "everything", is_flag=True, help="List the models too that have no recipe and are planned only.")
def list_recipes(words: tuple[str, ...], everything: bool) -> Answer:
    """List the recipes and what each trains, family by family.

    With words: those whose name or family holds every one of them.
    """
    from slipway import configs
    from slipway.configs import Refusal
    from slipway.planner.parameters import model_parameters

    recipes = []
    trained = configs.recipe_names()
    for name in [*trained, *(configs.planned_only_names() if everything else [])]:
        model, gpu, gpus = configs.headline(name)
        if not all(word.lower() in f"{name} {model.family}" for word in words):
            continue
        total, active = model_parameters(model, model.seq_length)
        recipes.append(Recipe(name, model.family, total, active, model.seq_length, gpu, gpus, name in trained))
    if not recipes:
        raise Refusal(f"no recipe's name or family holds {' and '.join(words)}", "slipway list shows them all.")
    return Recipes(tuple(recipes))
