"""What of a layout the user gave and what was chosen, for every command that completes a layout."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slipway.configs import Layout, Resolved

_SHOWN = ("tp", "pp", "vpp", "cp", "ep", "etp", "mbs", "recompute")
"""What a reader wants to know was chosen; ``--json`` lists every field."""


def pinned_json(resolved: Resolved) -> dict[str, Any]:
    """``pinned``: the given fields of the layout with their values; ``chosen``: the fields that a search chooses."""
    from slipway.planner.to_json import plain

    return {
        "pinned": {name: plain(getattr(resolved.spec.layout, name)) for name in sorted(resolved.pinned)},
        "chosen": chosen(resolved.pinned),
    }


def chosen(pinned: frozenset[str]) -> list[str]:
    """The fields of the layout that a search chooses where ``pinned`` is given."""
    from slipway.planner.search import SEARCHED

    return [name for name in SEARCHED if name not in pinned]


def pinned_line(layout: Layout, pinned: frozenset[str], *, searched: bool) -> str:
    """``layout.tp=8; chosen: pp, ...``, or which sizes are at their defaults where the layout is not ``searched``."""
    from slipway.planner.layout import PARALLEL, as_override

    ordered = [field.name for field in dataclasses.fields(layout) if field.name in pinned]
    given = ", ".join(as_override(layout, name) for name in ordered)
    if searched:
        return f"{given}; chosen: {', '.join(name for name in _SHOWN if name not in pinned)}"
    rest = ", ".join(as_override(layout, name) for name in PARALLEL if name not in pinned)
    return f"{given}; by default: {rest}" if rest else given
