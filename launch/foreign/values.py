"""A configuration of nested values: reading one marks it as used, and what is left is sorted by a table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slipway.configs import Refusal
from slipway.configs.files import parse_yaml

_REFERENCE = re.compile(r"\$\{(\.*[A-Za-z_][\w.]*)\}")
_CALL = re.compile(r"\$\{(multiply|divide_ceil|divide_floor):([^${}]*)\}")
_DEEPEST = 20  # references in references
_LONGEST_SHOWN = 40  # characters of a value


@dataclass
class Account:
    """Every value of a file, in one of four lists."""

    used: list[str] = field(default_factory=list)
    irrelevant: list[str] = field(default_factory=list)
    not_modelled: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


class Values:
    """The values of a file by their dotted path.

    Args:
        roots: names that stand for the whole file in references, as ``training`` in ``${training.model.x}``.
    """

    def __init__(self, tree: Mapping[str, Any], where: str, roots: tuple[str, ...] = ()) -> None:
        self.where, self._roots = where, roots
        self._tree = tree
        self.leaves = dict(_leaves(tree, ""))
        self.used: set[str] = set()

    def __contains__(self, path: str) -> bool:
        return path in self.leaves or any(leaf.startswith(f"{path}.") for leaf in self.leaves)

    def get(self, path: str, default: Any = None) -> Any:
        """A value, with its references resolved; ``default`` where it is missing or null."""
        if path not in self.leaves:
            return default
        self.used.add(path)
        found = self._resolved(self.leaves[path], path)
        return default if found is None else found

    def whole(self, path: str, default: int | None = None) -> int:
        """A count.

        Raises:
            Refusal: it is something else, or missing without a default.
        """
        found = self.get(path, default)
        if isinstance(found, str) and re.fullmatch(r"-?\d+", found.strip()):
            found = int(found)
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if isinstance(found, bool) or not isinstance(found, int):
            said = "does not say" if found is None else f"has {path}={found}, and not"
            raise Refusal(f"{self.where} {said} {path} as a whole number", "Correct it.")
        return found

    def number(self, path: str, default: float) -> float:
        """A number.

        Raises:
            Refusal: it is something else.
        """
        found = self.get(path, default)
        try:
            made = float(found)
        except (TypeError, ValueError):
            raise Refusal(f"{self.where} has {path}={found}, and not a number", "Correct it.") from None
        if not math.isfinite(made):
            raise Refusal(f"{self.where} has {path}={found}, and not a finite number", "Correct it.")
        return made

    def flag(self, path: str, default: bool = False) -> bool:
        """Whether a switch is on."""
        found = self.get(path, default)
        return found.strip().lower() in ("true", "yes", "on", "1") if isinstance(found, str) else bool(found)

    def text(self, path: str, default: str = "") -> str:
        """A word."""
        return str(self.get(path, default))

    def _resolved(self, value: Any, path: str, depth: int = 0) -> Any:
        """The value with ``${a.b}``, ``${.sibling}`` and ``${multiply:4,...}`` replaced; what is not known stays."""
        if isinstance(value, list):
            return [self._resolved(item, path, depth) for item in value]
        if not isinstance(value, str) or "${" not in value or depth > _DEEPEST:
            return value
        if whole := _REFERENCE.fullmatch(value.strip()):
            target = self._target(whole[1], path)
            if target not in self.leaves:
                return value
            return self._resolved(self.leaves[target], target, depth + 1)

        def referred(found: re.Match[str]) -> str:
            target = self._target(found[1], path)
            return str(self._resolved(self.leaves.get(target, found[0]), target, depth + 1))

        text = _CALL.sub(_computed, _REFERENCE.sub(referred, value))
        if re.fullmatch(r"-?\d+", text):
            return int(text)
        return self._resolved(text, path, depth + 1) if text != value else text

    def _target(self, reference: str, path: str) -> str:
        """The path that a reference names; leading dots count from the value's own mapping."""
        if not reference.startswith("."):
            root, _, rest = reference.partition(".")
            return rest if root in self._roots else reference
        names = reference.lstrip(".")
        ups = len(reference) - len(names)
        parents = path.split(".")[:-ups]
        return ".".join([*parents, names])

    def account(self, table: Path) -> Account:
        """Every value of the file, in one of four lists.

        Args:
            table: a file with the prefixes of paths without bearing, and of those that are known and not modelled.
        """
        kinds, found = kinds_of(table), Account()
        for path, value in self.leaves.items():
            kind = "used" if path in self.used else by_head(path, kinds) or "unknown"
            getattr(found, kind).append(f"{path} {short(value)}")
        return found


def kinds_of(table: Path) -> dict[str, str]:
    """The prefixes of paths in a table, and whether they are ``irrelevant`` or ``not_modelled``."""
    known = parse_yaml(table)
    return {path: kind for kind in ("irrelevant", "not_modelled") for path in known[kind].split()}


def by_head(path: str, kinds: Mapping[str, str]) -> str:
    """The kind of the longest prefix of a path; empty where there is none."""
    parts = path.split(".")
    heads = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((kinds[head] for head in heads if head in kinds), "")


def _computed(found: re.Match[str]) -> str:
    words = [word.strip() for word in found[2].split(",")]
    if len(words) != 2 or not all(re.fullmatch(r"\d+(\.\d+)?", word) for word in words):
        return found[0]
    a, b = map(float, words)
    if found[1] == "multiply":
        return f"{a * b:.0f}"
    if not b:
        return found[0]
    return str(math.ceil(a / b) if found[1] == "divide_ceil" else math.floor(a / b))


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", None if isinstance(value, Mapping) else value


def short(value: Any) -> str:
    """A value as the answer shows it."""
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
