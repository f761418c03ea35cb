"""The exception for requests that cannot be met, which the command line prints in one sentence with exit code 2."""

from __future__ import annotations

import contextlib
import difflib
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
        return f"{text.rstrip('.')}. {self.fix}" if self.fix else text


@contextlib.contextmanager
def exit_on_refusal() -> Iterator[None]:
    """Print a Refusal as one sentence and exit with 2: for code that other people's command lines call."""
    try:
        yield
    except Refusal as refusal:
        print(f"slipway: {refusal.sentence()}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def nearest(given: str, legal: Iterable[str], count: int = 3) -> str:
    """A clause that names the legal names closest to ``given``, or all of them where none is close."""
    names = sorted(legal)
    near = difflib.get_close_matches(given, names, n=count, cutoff=0.5)
    return "did you mean " + " or ".join(near) + "?" if near else "legal: " + ", ".join(names)
