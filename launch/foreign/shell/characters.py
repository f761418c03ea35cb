"""The words of a shell script, read character by character, with the line of each."""

from __future__ import annotations

import bisect
import re
from typing import NoReturn

from slipway.configs import Refusal
from slipway.launch.foreign.shell.nodes import Computed, Literal, Part, Variable, Word
from slipway.launch.foreign.shell.text import Piece, Text, plain

END_OF_WORD = " \t\n;&|<>()"
"""The characters that end a word outside quotes."""

_BRACED = re.compile(r"(#?)([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?$!-])(?:\[([^\]]*)\])?")


def quoted_word(text: Text, where: str) -> Word:
    """Text as one word, its expansions read as within double quotes."""
    return Words(text, where).word("", quoted=True)


class Characters:
    """The characters of a script, and the line of each."""

    def __init__(self, text: Text, where: str) -> None:
        self.where = where
        self.text = plain(text)
        self.at = 0
        self._starts, self._pieces = [], list(text)
        start = 0
        for piece in text:
            self._starts.append(start)
            start += len(plain([piece]))

    def line(self, at: int | None = None) -> int:
        at = min(self.at if at is None else at, max(len(self.text) - 1, 0))
        found = bisect.bisect_right(self._starts, at) - 1
        if found < 0:
            return 1
        return self._pieces[found].line + self.text.count("\n", self._starts[found], at)

    def fail(self, what: str, line: int | None = None) -> NoReturn:
        raise Refusal(f"{self.where} line {line or self.line()}: {what}", "Give a whole shell script.")

    def peek(self, length: int = 1) -> str:
        return self.text[self.at : self.at + length]

    def cut(self, start: int, stop: int) -> Text:
        """The characters between two positions, a piece a line."""
        pieces, at = [], start
        for row in self.text[start:stop].splitlines(keepends=True):
            pieces.append(Piece(row, self.line(at)))
            at += len(row)
        return tuple(pieces)

    def next_character(self) -> str:
        """Pass blanks; the character that follows them."""
        self.blanks()
        return self.peek()

    def blanks(self) -> None:
        """Pass white space within a line, continuation lines and comments."""
        while self.at < len(self.text):
            if self.peek() in (" ", "\t", "\r"):
                self.at += 1
            elif self.peek(2) == "\\\n" or self.peek(3) == "\\\r\n":
                self.at += self.text.index("\n", self.at) - self.at + 1
            elif self.peek() == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                return


class Words(Characters):
    """Words and their expansions."""

    def some_word(self, stop: str = END_OF_WORD) -> Word:
        """A word of at least one character."""
        before = self.at
        found = self.word(stop)
        if self.at == before:
            self.fail(f"{self.peek()!r} is not expected here")
        return found

    def word(self, stop: str = END_OF_WORD, quoted: bool = False) -> Word:
        """One word, up to a character of ``stop``; within double quotes where ``quoted``."""
        parts: list[Part] = []
        while self.at < len(self.text) and self.peek() not in stop:
            parts += self._part(stop, quoted)
        return tuple(parts)

    def _part(self, stop: str, quoted: bool) -> list[Part]:
        character, line, start = self.peek(), self.line(), self.at
        if character == "\\":
            self.at += 2
            escaped = self.text[start + 1 : start + 2]
            if escaped == "\n":
                return []
            kept = escaped if not quoted or escaped in '$`"\\' else "\\" + escaped
            return [Literal(Piece(kept, line), True)]
        if character == "'" and not quoted:
            return self._single_quotes(line)
        if character == '"' and not quoted:
            return self._double_quotes(line)
        if character == "$" and (found := self._expansion(line, quoted)):
            return [found]
        if character == "`":
            end = self._until("`", "a backtick is not closed")
            return [Computed(self.cut(start + 1, end), line, quoted)]
        self.at += 1
        while self.at < len(self.text) and self.peek() not in stop + "\\'\"$`\n":
            self.at += 1
        return [Literal(Piece(self.text[start : self.at], line), quoted)]

    def _until(self, mark: str, what: str) -> int:
        """Pass the next ``mark`` after this character, and return its position."""
        line = self.line()
        end = self.text.find(mark, self.at + 1)
        if end < 0:
            self.fail(what, line)
        self.at = end + len(mark)
        return end

    def _single_quotes(self, line: int) -> list[Part]:
        start = self.at + 1
        end = self._until("'", "a single quote is not closed")
        return [Literal(piece, True) for piece in self.cut(start, end)] or [Literal(Piece("", line), True)]

    def _double_quotes(self, line: int) -> list[Part]:
        self.at += 1
        parts = self.word('"', quoted=True)
        if self.peek() != '"':
            self.fail("a double quote is not closed", line)
        self.at += 1
        return [Literal(Piece("", line), True), *parts]

    def _expansion(self, line: int, quoted: bool) -> Part | None:
        if self.peek(3) == "$((":
            text = self._balanced(3, "))")
            return Computed(text, line, quoted, arithmetic=True)
        if self.peek(2) == "$(":
            return Computed(self._balanced(2, ")"), line, quoted)
        if self.peek(2) == "${":
            return self._braced(line, quoted)
        found = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*|[0-9@*#?$!-])").match(self.text, self.at)
        if not found:
            return None
        self.at = found.end()
        return Variable(found[1], line, quoted)

    def _balanced(self, opening: int, closing: str) -> Text:
        """Pass ``$(...)`` or ``$((...))`` with the brackets and quotes inside it."""
        line, start, depth = self.line(), self.at + opening, 0
        self.at = start
        while self.at < len(self.text):
            character = self.peek()
            if depth == 0 and self.peek(len(closing)) == closing:
                self.at += len(closing)
                return self.cut(start, self.at - len(closing))
            depth += (character == "(") - (character == ")")
            if character in "'\"":
                self._until(character, "a quote is not closed")
            else:
                self.at += 2 if character == "\\" else 1
        self.fail("$( is not closed", line)

    def _braced(self, line: int, quoted: bool) -> Variable:
        self.at += 2
        found = _BRACED.match(self.text, self.at)
        if not found:
            self.at = self._matching_brace(line)
            return Variable("", line, quoted, operator="?")
        self.at = found.end()
        operator = re.compile(r":?[-=+?]|##?|%%?|//?|\^\^?|,,?|:|").match(self.text, self.at)[0]  # type: ignore[index]
        self.at += len(operator)
        operand = self.word("}")
        if self.peek() != "}":
            self.fail("${ is not closed", line)
        self.at += 1
        return Variable(found[2], line, quoted, found[3] or "", bool(found[1]), operator, operand)

    def _matching_brace(self, line: int) -> int:
        end = self.text.find("}", self.at)
        if end < 0:
            self.fail("${ is not closed", line)
        return end + 1
