"""A configuration as text: every argument, its default included, by its dotted path."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from typing import Any

import fiddle as fdl


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """Path -> value of every argument below ``config``; an object is the name of its class."""
    out: dict[str, str] = {}
    for name, value in fdl.ordered_arguments(config, include_defaults=True).items():
        key = f"{prefix}{name}"
        if isinstance(value, fdl.Buildable):
            out[key] = value.__fn_or_cls__.__name__
            out.update(flatten(value, key + "."))
        elif isinstance(value, list) and any(isinstance(each, fdl.Buildable) for each in value):
            out.update(_flatten_list(value, key))
        elif callable(value):
            function = value.func if isinstance(value, functools.partial) else value
            out[key] = getattr(function, "__name__", str(value))
        elif value is not dataclasses.MISSING and "object at 0x" not in str(value):
            out[key] = str(value)
    return out


def _flatten_list(values: list[Any], key: str) -> dict[str, str]:
    """Callbacks by the name of their class, the second of a class as NAME#2; without arguments that are None."""
    out: dict[str, str] = {}
    names = Counter[str]()
    for value in values:
        name = value.__fn_or_cls__.__name__
        names[name] += 1
        place = f"{key}.{name}" + (f"#{names[name]}" if names[name] > 1 else "")
        out[place] = "on"
        out.update({name: text for name, text in flatten(value, place + ".").items() if text != "None"})
    return out
