"""``slipway show``: a recipe's values, what set each, and the reviewed difference from NeMo's recipe of that name."""

from __future__ import annotations

import dataclasses
from enum import Enum
from pathlib import Path
from typing import Any

from slipway.launch.cli.answer import Answer, Section, command, recipe_arguments
from slipway.launch.cli.printing import Table, Terminal

UPSTREAM = Path(__file__).parents[3] / "recipes" / "upstream"


@dataclasses.dataclass(frozen=True)
class Shown(Answer):
    """A resolved recipe: rows of ``key``, ``value`` and ``set_by``, and lines ``key: upstream -> ours``."""

    name: str
    values: list[dict[str, Any]]
    difference: list[str]

    def as_json(self) -> dict[str, Any]:
        return {"values": self.values, "upstream_difference": self.difference}

    def show(self, terminal: Terminal) -> None:
        table = Table(("key", "value", "set by"))
        for row in self.values:
            table.add(row["key"], str(row["value"]), row["set_by"])
        terminal.table(table)
        if self.difference:
            terminal.line(f"Differences from NeMo 2.7.3's {self.name} (NeMo -> Slipway):")
            for line in self.difference:
                terminal.line("  " + line)


@command(Section.RECIPES)
@recipe_arguments
def show(name: str, overrides: tuple[str, ...]) -> Answer:
    """Show every value of a recipe and what set it.

    Shows also how the recipe, without overrides, differs from NeMo 2.7.3's recipe of the same name.
    """
    return Shown(name, resolved_rows(name, list(overrides)), upstream_difference(name))


def resolved_rows(name: str, overrides: list[str]) -> list[dict[str, Any]]:
    """Every key with its value and what set it: default, model fact, preset, recipe, layout source, override."""
    from slipway import configs, planner
    from slipway.configs.load import PARALLEL_KEYS, schema_keys

    resolved = configs.load(name, overrides)
    spec, chosen_by = planner.choose_layout(resolved)
    before, after = resolved.spec.layout, spec.layout
    set_by = dict(resolved.provenance)
    for field in dataclasses.fields(after):
        key = f"layout.{field.name}"
        changed = getattr(before, field.name) != getattr(after, field.name)
        if changed or (not resolved.layout_given and key in PARALLEL_KEYS):
            set_by[key] = "layout.split_unevenly" if resolved.layout_given else f"layout ({chosen_by})"
    return [{"key": key, "value": _value(spec, key), "set_by": set_by[key]} for key in schema_keys()]


def _value(spec: Any, dotted: str) -> Any:
    """The value of a dotted key as JSON can hold it."""
    for part in dotted.split("."):
        spec = getattr(spec, part)
    if isinstance(spec, Enum):
        return spec.value
    return dict(spec) if isinstance(spec, dict) else spec


def upstream_difference(name: str) -> list[str]:
    """Lines ``key: upstream -> ours``; empty if NeMo has no recipe of this name."""
    path = UPSTREAM / f"{name}.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line for line in lines if line and not line.startswith("#")]
