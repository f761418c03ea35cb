"""One recipe, the choices of its groups and the overrides, composed into one nested mapping.

The files are Hydra's (a defaults list, then values), and tests/configs compares the composition with Hydra's own.
Hydra itself does not run here: it scans the environment for plugins, which imports unrelated packages and takes longer
than everything else that ``slipway check`` does.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slipway.configs.convert import convert
from slipway.configs.errors import Refusal
from slipway.configs.files import GROUPS, parse_yaml, read, root, site_file
from slipway.configs.overrides import refuse_interpolation
from slipway.configs.planned import recipe_body
from slipway.configs.schema import Cluster

_MISSING = "???"
"""Hydra's mark for a value that must come from elsewhere."""

SHELL_TEXT = ("setup",)
"""Keys of a cluster whose text a shell reads, where ``${NAME}`` is the shell's."""


def chosen_groups(recipe: str) -> dict[str, str]:
    """The choice of each group before any override: the base file's, replaced by the recipe's own."""
    entries = [entry for entry in root()["defaults"] if isinstance(entry, dict)] + recipe_body(recipe)["defaults"]
    chosen = {key.removeprefix("override /"): name for entry in entries for key, name in entry.items()}
    return {group: chosen[group] for group in GROUPS}


def cluster_values(cluster: str) -> dict[str, Any]:
    """The content of a cluster's file, wherever ``cluster=`` finds it; its name defaults to that of the file.

    Raises:
        Refusal: the file does not hold a cluster.
    """
    site = site_file(cluster)
    return _site_values(site) if site else read("cluster", cluster)


def _site_values(path: Path) -> dict[str, Any]:
    try:
        values = {"name": path.stem} | parse_yaml(path)
    except Refusal as refusal:
        raise Refusal(refusal.message, "See configs/cluster/dgx_h100.yaml for an example of a cluster.") from None
    checked = convert(Cluster, values, f"{path}: cluster.")
    refuse_interpolation("cluster", {key: value for key, value in values.items() if key not in SHELL_TEXT})
    return values | {"gpu": checked.gpu}


def compose(recipe: str, choices: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The nested values of a run.

    Args:
        choices: the groups that overrides choose, as ``{"gpu": "h200"}``.
        values: the values that overrides set, by dotted key.
    """
    composed: dict[str, Any] = {}
    for group, name in (chosen_groups(recipe) | dict(choices)).items():
        content = cluster_values(name) if group == "cluster" else read(group, name)
        composed[group] = copy.deepcopy(content)
    for body in (root(), recipe_body(recipe)):
        _merge(composed, {key: value for key, value in body.items() if key != "defaults" and value != _MISSING})
    for key, value in values.items():
        set_value(composed, key, value)
    return composed


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def set_value(into: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key in nested values; a mapping is merged into the one that is there."""
    *parents, last = key.split(".")
    for parent in parents:
        into = into.setdefault(parent, {})
        if not isinstance(into, dict):
            raise Refusal(f"{parent}={into} is not legal: it must be a mapping.")
    _merge(into, {last: value})
