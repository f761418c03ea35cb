"""The exception for requests that cannot be met, which the command line prints in one sentence with exit code 2."""

from __future__ import annotations

import contextlib
import difflib
import re
import sys
from collections.abc import Iterable, Iterator


class Refusal(Exception):
    """A request that cannot be met.

    Args:
        message: one sentence that names what was given and what is legal.
        fix: how to change the request so that it can be met; empty where no single change does.
        rule: the id of the rule that was broken; empty where none was.
    """

    def __init__(self, message: str, fix: str = "", rule: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.rule = rule

    def sentence(self) -> str:
        """The message and its fix on one line, as stderr shows them."""
        text = " ".join(self.message.split())
        return in_brief(f"{text.rstrip('.')}. {self.fix}" if self.fix else text)


_LONGEST_WORD = 300  # characters of a message without a space: a path may have as many, what nobody reads has more
_LONGEST_MESSAGE = 2000  # characters
_MOST_LISTED = 80  # names; keys are more, and are named by their groups
_LONGEST_NAME = 100  # characters: what is longer is a misspelling of nothing


def in_brief(text: str) -> str:
    """A message without the middle of words that are too long to read, printable in any encoding."""

    def shorten(word: re.Match[str]) -> str:
        return f"{word[0][:60]}...({len(word[0]):,} characters)"

    text = re.sub(rf"\S{{{_LONGEST_WORD},}}", shorten, text)
    if len(text) > _LONGEST_MESSAGE:
        text = text[:_LONGEST_MESSAGE] + " ..."
    return text.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def exit_on_refusal() -> Iterator[None]:
    """Print a Refusal as one sentence and exit with 2: for code that other people's command lines call."""
    try:
        yield
    except Refusal as refusal:
        print(f"slipway: {refusal.sentence()}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def nearest(given: str, legal: Iterable[str], count: int = 3) -> str:
    """A clause that names the legal names closest to ``given``, or all of them where none is close.

    Of dotted names, those whose last part is ``given`` are the closest; where there are too many to list, their
    groups stand for them.
    """
    names = sorted(legal)
    near: list[str] = []
    if len(given) <= _LONGEST_NAME:
        near = [name for name in names if name.rpartition(".")[2] == given.rpartition(".")[2]]
        near = near or difflib.get_close_matches(given, names, n=count, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(near[:count]) + "?"
    if len(names) > _MOST_LISTED:
        names = sorted({f"{group}.*" if dot else group for group, dot, _ in (name.partition(".") for name in names)})
    return "legal: " + ", ".join(names)
