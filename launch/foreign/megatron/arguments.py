"""A command line of Megatron-LM, parsed by the definitions of its argparse, which configs/megatron_lm holds as data."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from slipway.configs import Refusal
from slipway.configs.files import ROOT, parse_yaml
from slipway.launch.foreign.shell.text import Text, line_of, plain, unknown

VERSION = "core_v0.15.3"
"""The version of Megatron-LM whose definitions are used: that of the Megatron-Core which the rules describe."""

_FOLDER = ROOT / "megatron_lm"
_NEGATIVE = re.compile(r"-\d+$|-\d*\.\d+$")  # argparse takes such a word as a value
_KINDS: dict[str, tuple[Any, str]] = {"int": (int, "a whole number"), "float": (float, "a number")}


class Unknown(NamedTuple):
    """A value that only a shell could compute."""

    needs: str
    line: int


@dataclass(frozen=True)
class Definition:
    """One argument, as argparse knows it."""

    flags: tuple[str, ...]
    dest: str
    group: str
    default: Any = None
    kind: str = "str"
    nargs: str | int | None = None
    choices: tuple[Any, ...] = ()
    stores: bool | None = None
    """The value that the flag stores; None: the flag takes words."""
    opposite: str = ""
    """The flag that stores the contrary."""


class Given(NamedTuple):
    """One argument as a file gives it."""

    flag: str
    dest: str
    value: Any
    text: str
    line: int

    def shown(self) -> str:
        """The flag and its words."""
        return f"{self.flag} {self.text}".strip()


@dataclass
class Arguments:
    """Every argument's value, and which of them the file gives. Reading a value marks its argument as used."""

    where: str
    given: list[Given] = field(default_factory=list)
    unknown: list[Given] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    """Variables between the arguments that nothing defines: a shell takes them to be empty."""
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._last: dict[str, Given] = {}

    def add(self, given: Given) -> None:
        """Take one argument; of two for one value the last counts."""
        self.given.append(given)
        self._last[given.dest] = given

    def last(self, dest: str) -> Given | None:
        """The argument that decides a value, where one is given."""
        return self._last.get(dest)

    def value(self, dest: str) -> Any:
        """The value, or its default.

        Raises:
            Refusal: only a shell could compute it.
        """
        self.used.add(dest)
        given = self._last.get(dest)
        if given is None:
            return defaults()[dest]
        items = given.value if isinstance(given.value, list) else [given.value]
        if lacking := next((item for item in items if isinstance(item, Unknown)), None):
            raise needs(self.where, lacking, given.flag)
        return given.value

    def unpriced(self, dest: str) -> Any:
        """The value of an argument on which no answer depends, or its default; it does not count as used.

        None where only a shell could compute it.
        """
        given = self._last.get(dest)
        found = defaults()[dest] if given is None else given.value
        return None if isinstance(found, Unknown) else found

    def whole(self, dest: str) -> int:
        """A count; 0 where it is not given and has no default."""
        return int(self.value(dest) or 0)

    def text(self, dest: str) -> str:
        """A word; empty where there is none."""
        value = self.value(dest)
        return " ".join(map(str, value)) if isinstance(value, list) else str(value or "")

    def flag(self, dest: str) -> bool:
        """Whether a switch is on."""
        return bool(self.value(dest))


def needs(where: str, lacking: Unknown, what: str) -> Refusal:
    """The request for a value that only a shell could compute."""
    message = f"{where} line {lacking.line}: {what} needs {lacking.needs}, which only a shell could compute"
    named = lacking.needs if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+", lacking.needs) else "NAME"
    fix = (
        "Give it with --set {0}=VALUE"
        if named != "NAME"
        else "Put it into a variable and give that with --set {0}=VALUE"
    )
    return Refusal(message, fix.format(named) + ".")


@functools.cache
def definitions() -> dict[str, Definition]:
    """Every argument of Megatron-LM, by flag."""
    found: dict[str, Definition] = {}
    for item in json.loads((_FOLDER / f"{VERSION}.json").read_text())["arguments"]:
        words: dict[str, Any] = {k: tuple(v) if k in ("flags", "choices") else v for k, v in item.items()}
        made = Definition(**words)
        found |= dict.fromkeys(made.flags, made)
        if made.opposite:
            found[made.opposite] = made
    return found


@functools.cache
def defaults() -> dict[str, Any]:
    """Every argument's default, by destination."""
    found: dict[str, Any] = {}
    for made in definitions().values():
        found.setdefault(made.dest, made.default)
    return found


class Bearing(NamedTuple):
    """What configs/megatron_lm/bearing.yaml says."""

    groups: frozenset[str]
    arguments: frozenset[str]
    vocabularies: dict[str, int]
    """By the type of the tokenizer."""
    models: dict[str, int]
    """Vocabularies by a word in the tokenizer's name."""


@functools.cache
def bearing() -> Bearing:
    """The arguments that have no bearing on a run's legality, memory and speed."""
    content = parse_yaml(_FOLDER / "bearing.yaml")
    groups, arguments = (frozenset(content[key].split()) for key in ("groups", "arguments"))
    return Bearing(groups, arguments, content["vocabularies"], content["vocabularies_of_models"])


def has_bearing(dest: str) -> bool:
    """Whether an argument may change a run's legality, memory or speed."""
    known = bearing()
    group = next(made.group for made in definitions().values() if made.dest == dest)
    return group not in known.groups and dest not in known.arguments


def parse(words: Sequence[Text], where: str) -> Arguments:
    """The arguments of a command line.

    Raises:
        Refusal: an argument without its value, or with one of another type.
    """
    arguments = Arguments(where)
    at = 0
    while at < len(words):
        word = words[at]
        if plain(word).startswith("--") and not (unknown(word) and "=" not in plain(word)):
            at = _option(words, at, arguments)
        else:
            _stray(word, arguments)
            at += 1
    return arguments


def _stray(word: Text, arguments: Arguments) -> None:
    """A word that belongs to no option."""
    if lacking := unknown(word):
        arguments.stray.append(f"{lacking} (line {line_of(word)})")
    else:
        arguments.unknown.append(Given(plain(word), "", plain(word), "", line_of(word)))


def _is_value(word: Text) -> bool:
    text = plain(word)
    return not text.startswith("-") or bool(_NEGATIVE.match(text)) or " " in text


def _option(words: Sequence[Text], at: int, arguments: Arguments) -> int:
    """Take the option at this word with its values; the position after them."""
    word = words[at]
    line = line_of(word)
    flag, equals, _ = plain(word).partition("=")
    made = definitions().get(flag)
    after = at + 1
    while after < len(words) and _is_value(words[after]):
        after += 1
    following = list(words[at + 1 : after])
    if equals:
        following = [tuple(piece._replace(text=_after_equals(piece.text, flag)) for piece in word)]
    if made is None:
        text = " ".join(map(plain, following))
        arguments.unknown.append(Given(flag, "", text, text, line))
        return at + 1 if equals else after
    if made.stores is not None:
        stored = made.stores if flag != made.opposite else not made.stores
        arguments.add(Given(flag, made.dest, stored, "", line))
        return at + 1
    taken = _taken(made, following, equals, f"{arguments.where} line {line}: {flag}")
    values = [_converted(made, item, f"{arguments.where} line {line}: {flag}") for item in taken]
    single = made.nargs is None or made.nargs == "?"
    value_ = (values[0] if values else made.default) if single else values
    arguments.add(Given(flag, made.dest, value_, " ".join(map(plain, taken)), line))
    return at + 1 if equals else at + 1 + len(taken)


def _after_equals(text: str, flag: str) -> str:
    return text.removeprefix(f"{flag}=")


def _taken(made: Definition, following: list[Text], equals: str, where: str) -> list[Text]:
    """The words that an option takes."""
    if made.nargs in ("*", "+"):
        taken = following
    elif isinstance(made.nargs, int):
        taken = following[: made.nargs]
    else:
        taken = following[:1]
    fewest = made.nargs if isinstance(made.nargs, int) else 0 if made.nargs in ("*", "?") else 1
    if len(taken) < fewest:
        raise Refusal(f"{where} has no value", "Give one, or leave the argument out.")
    return taken


def _converted(made: Definition, word: Text, where: str) -> Any:
    text = plain(word)
    if lacking := unknown(word):
        return Unknown(lacking, line_of(word))
    value: Any = text
    if made.kind in _KINDS:
        kind, words = _KINDS[made.kind]
        try:
            value = kind(text)
        except ValueError:
            raise Refusal(f"{where} {text} is not {words}", "Correct the argument.") from None
    if made.choices and value not in made.choices:
        raise Refusal(f"{where} {text} is not legal: it must be one of {', '.join(map(str, made.choices))}")
    return value
