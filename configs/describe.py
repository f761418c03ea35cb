"""The schema's own documentation: for every key its type, default, legal values and description.

The reference page of the keys is generated from here.
"""

from __future__ import annotations

import ast
import functools
import inspect
from dataclasses import dataclass
from enum import Enum
from typing import Any

from slipway.configs.convert import Field, fields_of, type_words
from slipway.configs.schema import Spec


@dataclass(frozen=True, kw_only=True)
class KeyDescription:
    """One key that an override may name."""

    key: str
    """Dotted, for example layout.tp."""

    group: str
    """The part of the key before its last dot; empty for the keys of the run itself."""

    type: str
    """The Python type as the schema writes it, for example int, list[str] or Recompute."""

    required: bool
    """Whether a recipe or one of its files must set it."""

    default: Any
    """The default as JSON holds it; None where ``required``."""

    legal: str
    """The legal values, in words."""

    choices: tuple[str, ...]
    """The members of a closed set; empty for other types."""

    description: str
    """What the key means, its unit and special values."""


@dataclass(frozen=True, kw_only=True)
class GroupDescription:
    """One group of keys."""

    group: str
    """The group as it stands before the dot, for example layout; empty for the keys of the run itself."""

    description: str
    """The first paragraph of the schema class's docstring."""

    keys: tuple[KeyDescription, ...]


@functools.cache
def describe(cls: type = Spec) -> tuple[KeyDescription, ...]:
    """Every dotted key of a schema class, in the schema's order.

    ``describe(Model)`` gives the keys of a model's file.
    """
    return tuple(key for group in describe_groups(cls) for key in group.keys)


@functools.cache
def describe_groups(cls: type = Spec, prefix: str = "") -> tuple[GroupDescription, ...]:
    """The keys of a schema class, by group: first its own, then those of each group that it holds."""
    descriptions = attribute_docstrings(cls)
    own: list[KeyDescription] = []
    inner: list[GroupDescription] = []
    for name, field in fields_of(cls).items():
        if field.group:
            inner += describe_groups(field.group, f"{prefix}{name}.")
        else:
            own.append(_key(field, prefix, descriptions.get(name, "")))
    summary = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0]
    return (GroupDescription(group=prefix.removesuffix("."), description=summary, keys=tuple(own)), *inner)


def _key(field: Field, prefix: str, description: str) -> KeyDescription:
    choices: tuple[str, ...] = ()
    if isinstance(field.kind, type) and issubclass(field.kind, Enum):
        choices = tuple(member.value for member in field.kind)
    return KeyDescription(
        key=prefix + field.name,
        group=prefix.removesuffix("."),
        type=field.kind.__name__ if type(field.kind) is type or choices else str(field.kind),
        required=field.required,
        default=field.default.value if isinstance(field.default, Enum) else field.default,
        legal=field.legal if field.constraints else type_words(field.kind),
        choices=choices,
        description=description,
    )


@functools.cache
def attribute_docstrings(cls: type) -> dict[str, str]:
    """The string that stands under each attribute of a class, by the attribute's name."""
    (tree,) = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    documented: dict[str, str] = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            documented[statement.target.id] = " ".join(following.value.value.split())
    return documented
