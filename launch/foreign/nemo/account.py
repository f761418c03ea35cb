"""What became of each argument that a recipe of NeMo gives: read, without bearing, not modelled, not understood."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple

import fiddle as fdl

from slipway.configs.files import ROOT, parse_yaml
from slipway.recipes.readback.parts import kind_of

_LONGEST_SHOWN = 40  # characters of a value


class Given(NamedTuple):
    """One argument that is given: of which part, by which path."""

    owner: int
    name: str
    path: str
    shown: str
    accepted: bool
    """False: the class has no such parameter, and swallows any."""


def account(recipe: Any, read: set[tuple[int, str]]) -> dict[str, list[str]]:
    """Every argument that the recipe gives, in one of four lists.

    Args:
        read: the arguments that the reading asked for, as pairs of a part's id and a name.
    """
    table = parse_yaml(ROOT / "nemo" / "bearing.yaml")
    kinds = {path: kind for kind in ("irrelevant", "used") for path in table[kind].split()}
    found: dict[str, list[str]] = {"used": [], "irrelevant": [], "not_modelled": [], "unknown": []}
    config = recipe.model.config
    found["used"].append(f"model.config {kind_of(config).__name__}")
    for given in _given(recipe, ""):
        kind = _by_table(given.path, kinds) or ("" if given.accepted else "unknown")
        if not kind:
            kind = "used" if (given.owner, given.name) in read else "not_modelled"
        found[kind].append(given.shown)
    known, are_read = table["callbacks"].split(), table["read_callbacks"].split()
    for callback in recipe.trainer.__arguments__.get("callbacks") or []:
        name = kind_of(callback).__name__
        kind = "used" if name in are_read else "irrelevant" if name in known else "unknown"
        found[kind].append(f"trainer.callbacks.{name}")
    return found


def _by_table(path: str, kinds: dict[str, str]) -> str | None:
    """The kind of the longest entry that is the path or begins it."""
    parts = path.split(".")
    heads = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((kinds[head] for head in heads if head in kinds), None)


def _given(config: Any, prefix: str) -> Iterator[Given]:
    for name, value in config.__arguments__.items():
        path = f"{prefix}{name}"
        if path == "trainer.callbacks":
            continue
        if isinstance(value, fdl.Buildable):
            yield from _given(value, f"{path}.")
        else:
            accepted = _accepts(kind_of(config), str(name))
            yield Given(id(config), str(name), path, f"{path} {_word(value)}", accepted)


def _accepts(kind: Any, name: str) -> bool:
    """Whether a class has a parameter of the name; one without a signature accepts any."""
    try:
        parameters = inspect.signature(kind).parameters
    except ValueError:  # written in C
        return True
    return name in parameters and parameters[name].kind is not inspect.Parameter.VAR_KEYWORD


def _word(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name
    text = getattr(value, "__name__", None) or str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
