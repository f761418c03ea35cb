"""Plain data to the schema's frozen dataclasses: every value is converted, checked against its field, or refused.

This is the one place where data enter: fact files, recipes under overrides, and stored records all pass through
:func:`convert`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, TypeVar

from slipway.configs.errors import Refusal, nearest
from slipway.configs.schema.legal import Constraint

T = TypeVar("T")

TRUE_WORDS = ("true", "yes", "on", "y", "1")
FALSE_WORDS = ("false", "no", "off", "n", "0")


MOST_DIGITS = 18  # of a whole number: no size, count or seed has more


class _Illegal(ValueError):
    """The value does not fit its field; ``args`` may say what is legal where the field's type does not."""


@dataclass(frozen=True)
class Field:
    """One field of a schema class, as conversion and documentation need it."""

    name: str
    kind: Any
    """The field's type without its annotations: int, list[str], an enum, another schema class ..."""
    constraints: tuple[Constraint, ...]
    required: bool
    default: Any
    """The default value; None where ``required``."""

    @property
    def group(self) -> type | None:
        """The schema class that the field holds, if it holds one."""
        return self.kind if dataclasses.is_dataclass(self.kind) and isinstance(self.kind, type) else None

    @property
    def legal(self) -> str:
        """What is legal, as it completes the sentence "it must be ..."."""
        ranges = [constraint.words for constraint in self.constraints]
        return ", ".join([type_words(self.kind), *ranges])


@functools.cache
def fields_of(cls: type) -> dict[str, Field]:
    """The fields of a schema class, in order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: _field(f, hints[f.name]) for f in dataclasses.fields(cls)}


def _field(declared: dataclasses.Field[Any], hint: Any) -> Field:
    constraints: tuple[Constraint, ...] = ()
    if typing.get_origin(hint) is Annotated:
        hint, *extras = typing.get_args(hint)
        constraints = tuple(extra for extra in extras if isinstance(extra, Constraint))
    required = declared.default is dataclasses.MISSING and declared.default_factory is dataclasses.MISSING
    default = None if declared.default is dataclasses.MISSING else declared.default
    if declared.default_factory is not dataclasses.MISSING:
        default = declared.default_factory()
    return Field(declared.name, hint, constraints, required, default)


@functools.cache
def leaves(cls: type, prefix: str = "") -> dict[str, Field]:
    """Every dotted key below a schema class, with its field."""
    out: dict[str, Field] = {}
    for name, field in fields_of(cls).items():
        if field.group:
            out.update(leaves(field.group, f"{prefix}{name}."))
        else:
            out[prefix + name] = field
    return out


def type_words(kind: Any) -> str:
    """A field's type in the words of an error message."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(member.value or "'' (empty)" for member in kind)
    if typing.get_origin(kind) is types.UnionType:
        return " or ".join(type_words(part) for part in typing.get_args(kind))
    if dataclasses.is_dataclass(kind):
        return "a mapping"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        types.NoneType: "null",
        list[str]: "a list of texts",
        dict[str, str]: "a mapping of names to texts",
    }
    return words[kind]


def convert(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """``values`` as an instance of the schema class ``cls``.

    Args:
        values: plain data, nested as the schema is.
        where: what the message of a refusal starts with, for example the name of the file.

    Raises:
        Refusal: a key that the schema does not have, a required key without a value, or an illegal value.
    """
    return _convert(cls, values, where, "", cls)


def _convert(cls: type[T], values: Any, where: str, prefix: str, root: type) -> T:
    if not isinstance(values, Mapping):
        key = prefix.removesuffix(".")
        raise Refusal(f"{where}{key}={_shown(values)} is not legal: it must be a mapping.")
    fields = fields_of(typing.cast(type, cls))
    for key in values:
        if key not in fields:
            legal = leaves(root)
            raise Refusal(f"{where}{prefix}{_shown(key)} is unknown; {nearest(f'{prefix}{key}', legal)}")
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            if field.group:
                arguments[name] = _convert(field.group, values[name], where, f"{prefix}{name}.", root)
            else:
                arguments[name] = _value(field, values[name], f"{where}{prefix}{name}")
        elif field.required:
            raise Refusal(f"{where}{prefix}{name} is missing; it must be {field.legal}.")
    return cls(**arguments)


def _value(field: Field, given: Any, key: str) -> Any:
    try:
        value = _converter(field.kind)(given)
    except _Illegal as illegal:
        words = illegal.args[0] if illegal.args else type_words(field.kind)
        raise Refusal(f"{key}={_shown(given)} is not legal: it must be {words}.") from None
    for constraint in field.constraints:
        if not constraint.allows(value):
            shown = _shown(repr(value) if isinstance(value, str) else value)
            raise Refusal(f"{key}={shown} is not legal: it must be {constraint.words}.")
    return value


_LONGEST_SHOWN = 200  # characters of a value in a message


def _shown(value: Any) -> str:
    """A value as messages show it."""
    text = str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:60]}...({len(text):,} characters)"


def _converter(kind: Any) -> Callable[[Any], Any]:
    if typing.get_origin(kind) is types.UnionType:
        return functools.partial(_to_optional, kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return functools.partial(_to_choice, kind)
    return _CONVERTERS[kind]


def _to_int(given: Any) -> int:
    if type(given) not in (int, str):
        raise _Illegal
    try:
        value = int(given)
    except ValueError:
        raise _Illegal from None
    if abs(value) >= 10**MOST_DIGITS:
        raise _Illegal(f"a whole number of at most {MOST_DIGITS} digits")
    return value


def _to_float(given: Any) -> float:
    if type(given) not in (int, float, str):
        raise _Illegal
    try:
        value = float(given)
    except (ValueError, OverflowError):
        raise _Illegal from None
    if not math.isfinite(value):
        raise _Illegal("a finite number")
    return value


def _to_bool(given: Any) -> bool:
    if type(given) in (bool, int):
        return bool(given)
    if isinstance(given, str) and given.lower() in TRUE_WORDS + FALSE_WORDS:
        return given.lower() in TRUE_WORDS
    raise _Illegal


def _to_text(given: Any) -> str:
    if given is None or isinstance(given, Mapping | list | tuple | bool):
        raise _Illegal
    text = str(given)
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise _Illegal("text that UTF-8 can hold")
    return text


def _to_texts(given: Any) -> list[str]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise _Illegal
    return [_to_text(item) for item in given]


def _to_named_texts(given: Any) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise _Illegal
    return {_to_text(name): str(item) if isinstance(item, bool) else _to_text(item) for name, item in given.items()}


def _to_choice(kind: type[Enum], given: Any) -> Enum:
    try:
        return kind(given)
    except (ValueError, TypeError):
        raise _Illegal from None


def _to_optional(kind: Any, given: Any) -> Any:
    if given is None:
        return None
    (inner,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
    return _converter(inner)(given)


_CONVERTERS: dict[Any, Callable[[Any], Any]] = {
    int: _to_int,
    float: _to_float,
    bool: _to_bool,
    str: _to_text,
    list[str]: _to_texts,
    dict[str, str]: _to_named_texts,
}
