"""The one exception a user's mistake becomes: what was given, what is legal, how to mend it. Exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Refusal(Exception):
    """A request that cannot be met, told in one sentence.

    Args:
        message: one clear sentence that names what was given and what is legal.
        fix: the change that mends it, if there is one that can be named.
        rule: the id of the rule that was broken, where a named rule was.
    """

    def __init__(self, message: str, fix: str = "", rule: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.rule = rule

    def sentence(self) -> str:
        """The message and its fix on one line, as it is printed on stderr."""
        text = " ".join(self.message.split())
        return f"{text.rstrip('.')}. {self.fix}" if self.fix else text


def nearest(given: str, legal: Iterable[str], count: int = 3) -> str:
    """The legal names that look most like ``given``, else all of them, ready to stand in a sentence."""
    names = sorted(legal)
    near = difflib.get_close_matches(given, names, n=count, cutoff=0.5)
    return "did you mean " + " or ".join(near) + "?" if near else "legal: " + ", ".join(names)
