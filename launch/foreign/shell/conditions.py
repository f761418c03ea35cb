"""The shell's tests, ``[ ... ]`` and ``[[ ... ]]``, on words that are known."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Mapping

_NUMBERS: Mapping[str, Callable[[int, int], bool]] = {
    "-eq": operator.eq,
    "-ne": operator.ne,
    "-lt": operator.lt,
    "-le": operator.le,
    "-gt": operator.gt,
    "-ge": operator.ge,
}
_NEGATED = {True: False, False: True, None: None}


def holds(words: list[str]) -> bool | None:
    """Whether a test holds; None where it asks for something that only a machine knows, such as a file.

    Args:
        words: the test with its brackets, or with ``test`` in front.
    """
    body = words[1:-1] if words[0] in ("[", "[[") else words[1:]
    return _any(body, patterns=words[0] == "[[")


def _any(words: list[str], patterns: bool) -> bool | None:
    """Alternatives of conjunctions; brackets are taken as part of the tests that they hold."""
    words = [word for word in words if word not in ("(", ")")] if len(words) > 3 else words
    for mark, decides in ((("||", "-o"), True), (("&&", "-a"), False)):
        if found := [i for i, word in enumerate(words) if word in mark and i]:
            left, right = _any(words[: found[0]], patterns), _any(words[found[0] + 1 :], patterns)
            if left is decides or right is decides:
                return decides
            return None if left is None or right is None else not decides
    return _one(words, patterns)


def _one(words: list[str], patterns: bool) -> bool | None:
    if words[:1] == ["!"]:
        return _NEGATED[_one(words[1:], patterns)]
    if not words:
        return False
    if len(words) == 1:
        return bool(words[0])
    if len(words) == 2:
        return {"-z": not words[1], "-n": bool(words[1])}.get(words[0])
    left, sign, right = words[0], words[1], words[2] if len(words) == 3 else ""
    if sign in ("=", "=="):
        return fnmatch.fnmatchcase(left, right) if patterns else left == right
    if sign == "!=":
        return not (fnmatch.fnmatchcase(left, right) if patterns else left == right)
    if sign == "=~":
        return _matches(left, right)
    if sign in _NUMBERS and all(re.fullmatch(r"[-+]?[0-9]+", text.strip() or "0") for text in (left, right)):
        return _NUMBERS[sign](int(left or 0), int(right or 0))
    return None


def _matches(text: str, pattern: str) -> bool | None:
    """Whether a simple pattern is found; None for one that could take long."""
    if len(pattern) > 200 or re.search(r"[*+]\)?[*+]", pattern):
        return None
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return None
