"""``slipway show``: a recipe's values, who set each, and the reviewed difference from NeMo's recipe of the same name."""

from __future__ import annotations

import dataclasses
from enum import Enum
from pathlib import Path
from typing import Any

from slipway import configs, planner
from slipway.configs.load import PARALLEL_KEYS, schema_keys

UPSTREAM = Path(__file__).parents[2] / "recipes" / "upstream"


def _value(spec: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        spec = getattr(spec, part)
    if isinstance(spec, Enum):
        return spec.value
    return dict(spec) if isinstance(spec, dict) else spec


def resolved_rows(name: str, overrides: list[str]) -> list[dict[str, Any]]:
    """Every key with its value and who set it: default, model fact, preset, recipe, layout source, override."""
    resolved = configs.load(name, overrides)
    spec, chosen_by = planner.choose_layout(resolved)
    before, after = resolved.spec.layout, spec.layout
    who = dict(resolved.provenance)
    for f in dataclasses.fields(after):
        key = f"layout.{f.name}"
        if getattr(before, f.name) != getattr(after, f.name) or (not resolved.layout_given and key in PARALLEL_KEYS):
            who[key] = "layout.split_unevenly" if resolved.layout_given else f"layout ({chosen_by})"
    return [{"key": key, "value": _value(spec, key), "set_by": who[key]} for key in schema_keys()]


def upstream_difference(name: str) -> list[str]:
    """Lines ``key: upstream -> ours``; empty where NeMo has no recipe of this name."""
    path = UPSTREAM / f"{name}.txt"
    return (
        [line for line in path.read_text().splitlines() if line and not line.startswith("#")] if path.is_file() else []
    )
