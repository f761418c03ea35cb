"""The grammar of shell scripts: commands, conditions, loops and functions.

What a launch script needs of bash is read; a construct that is not known is refused with its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from slipway.launch.foreign.shell.characters import END_OF_WORD, Words
from slipway.launch.foreign.shell.nodes import (
    AndOr,
    Arithmetic,
    Assignment,
    Case,
    Condition,
    For,
    Function,
    Group,
    Literal,
    Node,
    Simple,
    Variable,
    Word,
    literal,
)
from slipway.launch.foreign.shell.text import Piece, Text, plain

DECLARATIONS = ("export", "declare", "local", "readonly", "typeset")
"""Commands whose words assign variables."""

_OPERATORS = (
    ";;",
    "&&",
    "||",
    "<<<",
    "<<-",
    "<<",
    ">>",
    "&>>",
    "&>",
    ">&",
    "<&",
    ">|",
    "<",
    ">",
    "|&",
    "|",
    "&",
    ";",
    "(",
    ")",
)
_OPERATORS_BY_LENGTH = sorted(_OPERATORS, key=len, reverse=True)
_REDIRECTIONS = (">>", "&>>", "&>", ">&", "<&", ">|", "<", ">", "<<<")
_HEREDOCS = ("<<", "<<-")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:\[([^\]]*)\])?(\+?)=")
_PLACEHOLDER = re.compile(r"<[^<>\n&|;]*>(?=\s|$)")  # NAME=<path to the data>, which the user is to replace
_DEEPEST = 60  # commands inside one another


def parse(text: Text, where: str) -> list[Node]:
    """The commands of a script.

    Args:
        where: the file, as a message names it.

    Raises:
        Refusal: the script is incomplete or not shell.
    """
    return _Parser(text, where).script()


class _Parser(Words):
    """Commands."""

    def __init__(self, text: Text, where: str) -> None:
        super().__init__(text, where)
        self._heredocs: list[tuple[str, bool, Callable[[Word], None]]] = []
        self._depth = 0

    def script(self) -> list[Node]:
        nodes = self.commands(())
        if self.at < len(self.text):
            self.fail(f"{self.peek(12).split()[0] if self.peek(12).split() else self.peek()!r} is not expected here")
        return nodes

    def commands(self, until: tuple[str, ...]) -> list[Node]:
        """Commands up to one of the words or operators ``until``, which is not passed."""
        nodes: list[Node] = []
        self._depth += 1
        if self._depth > _DEEPEST:
            self.fail("commands are nested too deeply")
        while True:
            self.separators()
            if self.at >= len(self.text) or any(self.ahead(mark) for mark in until):
                self._depth -= 1
                return nodes
            before = self.at
            nodes.append(self.and_or())
            if self.at == before:
                self.fail(f"{self.peek()!r} is not expected here")

    def separators(self) -> None:
        """Pass white space, newlines with their here-documents, and single ``;`` and ``&``."""
        while True:
            self.blanks()
            if self.peek() == "\n":
                self.at += 1
                self._read_heredocs()
            elif self.peek() in (";", "&") and self.peek(2) not in (";;", "&&", "&>"):
                self.at += 1
            else:
                return

    def ahead(self, mark: str) -> bool:
        """Whether the word or operator ``mark`` comes next."""
        if not self.text.startswith(mark, self.at):
            return False
        after = self.text[self.at + len(mark) : self.at + len(mark) + 1]
        return not mark[0].isalpha() or not after or after in END_OF_WORD

    def take(self, mark: str, opened: int) -> None:
        self.separators()
        if not self.ahead(mark):
            self.fail(f"{mark} is missing", opened)
        self.at += len(mark)

    def and_or(self) -> Node:
        line, node = self.line(), self.pipeline()
        while True:
            self.blanks()
            if self.peek(2) not in ("&&", "||"):
                return node
            operator = self.peek(2)
            self.at += 2
            while self.next_character() == "\n":
                self.at += 1
            node = AndOr(line, node, operator, self.pipeline())

    def pipeline(self) -> Node:
        self.blanks()
        line = self.line()
        negated = self.ahead("!") and self.peek(2) in ("! ", "!\t")
        if negated:
            self.at += 1
            self.blanks()
        nodes = [self.command()]
        while True:
            self.blanks()
            if self.peek() != "|" or self.peek(2) == "||":
                break
            self.at += 2 if self.peek(2) == "|&" else 1
            while self.next_character() == "\n":
                self.at += 1
            nodes.append(self.command())
        return nodes[0] if len(nodes) == 1 and not negated else Group(line, nodes, negated)

    def command(self) -> Node:
        line = self.line()
        compound: dict[str, Callable[[int], Node]] = {
            "if": self.conditional,
            "while": self.loop,
            "until": self.loop,
            "for": self.for_loop,
            "case": self.case,
            "function": self.function,
            "[[": self.double_brackets,
        }
        for word, read in compound.items():
            if self.ahead(word) and self.text[self.at + len(word) : self.at + len(word) + 1] in (" ", "\t", "\n"):
                node = read(line)
                self.redirections()
                return node
        if self.peek(2) == "((":
            self.at -= 1  # so that the dollar of $((...)) would stand here
            node = Arithmetic(line, self._balanced(3, "))"))
        elif self.peek() == "(":
            self.at += 1
            node = Group(line, self.commands((")",)))
            self.take(")", line)
        elif self.peek(2) in ("{ ", "{\n", "{\t"):
            node = self.braces(line)
        else:
            return self.simple(line)
        self.redirections()
        return node

    def braces(self, line: int) -> Group:
        self.take("{", line)
        body = self.commands(("}",))
        self.take("}", line)
        return Group(line, body)

    def conditional(self, line: int) -> Node:
        branches, otherwise = [], []
        self.at += 2
        while True:
            test = self.commands(("then",))
            self.take("then", line)
            branches.append((test, self.commands(("elif", "else", "fi"))))
            if not self.ahead("elif"):
                break
            self.at += 4
        if self.ahead("else"):
            self.at += 4
            otherwise = self.commands(("fi",))
        self.take("fi", line)
        return Condition(line, branches, otherwise)

    def loop(self, line: int) -> Node:
        until = self.ahead("until")
        self.at += 5
        test = self.commands(("do",))
        return Condition(line, [(test, self.do_body(line))], loop=True, until=until)

    def do_body(self, line: int) -> list[Node]:
        self.take("do", line)
        body = self.commands(("done",))
        self.take("done", line)
        return body

    def for_loop(self, line: int) -> Node:
        self.at += 3
        self.blanks()
        if self.peek(2) == "((":
            self.at -= 1
            self._balanced(3, "))")
            return For(line, "", [], self.do_body(line))
        name = plain(part.piece for part in self.word() if isinstance(part, Literal))
        self.blanks()
        words: list[Word] = []
        if self.ahead("in"):
            self.at += 2
            while self.next_character() not in ("\n", ";", ""):
                words.append(self.some_word())
        return For(line, name, words, self.do_body(line))

    def case(self, line: int) -> Node:
        self.at += 4
        self.blanks()
        word = self.word()
        arms: list[tuple[list[Word], list[Node]]] = []
        self.take("in", line)
        while True:
            self.separators()
            if self.ahead("esac"):
                self.at += 4
                return Case(line, word, arms)
            if self.peek() == "(":
                self.at += 1
            patterns: list[Word] = []
            while self.next_character() not in (")", ""):
                if self.peek() == "|":
                    self.at += 1
                else:
                    patterns.append(self.some_word())
            self.take(")", line)
            arms.append((patterns, self.commands((";;", "esac"))))
            if self.peek(2) == ";;":
                self.at += 2

    def function(self, line: int) -> Node:
        self.at += 8
        self.blanks()
        name = plain(part.piece for part in self.word() if isinstance(part, Literal))
        self.blanks()
        if self.peek() == "(":
            self.take("(", line)
            self.take(")", line)
        self.separators()
        return Function(line, name, self.braces(line).body)

    def double_brackets(self, line: int) -> Node:
        words: list[Word] = []
        while True:
            self.blanks()
            start = self.line()
            operator = next((mark for mark in ("&&", "||", "(", ")", "<", ">") if self.ahead(mark)), "")
            if self.peek() == "\n":
                self.at += 1
            elif operator:
                self.at += len(operator)
                words.append((Literal(Piece(operator, start)),))
            elif self.at >= len(self.text):
                self.fail("[[ is not closed", line)
            else:
                stop = " \t\n" if words and literal(words[-1]) == "=~" else END_OF_WORD
                words.append(self.some_word(stop))
                if literal(words[-1]) == "]]":
                    return Simple(line, words=words)

    def simple(self, line: int) -> Node:
        assignments: list[Assignment] = []
        words: list[Word] = []
        stdin: list[Word] = []
        writes: list[Word] = []
        while True:
            self.blanks()
            if self.redirection(stdin, writes):
                continue
            if self.at >= len(self.text) or self.peek() in ("\n", ";", "&", "|", ")"):
                break
            if self.peek() == "(":
                if len(words) == 1 and re.compile(r"\(\s*\)").match(self.text, self.at):
                    self.at = self.text.index(")", self.at) + 1
                    self.separators()
                    return Function(line, literal(words[0]), self.braces(line).body)
                self.fail("( is not expected here")
            found = _ASSIGNMENT.match(self.text, self.at)
            if found and (not words or literal(words[0]) in DECLARATIONS):
                assignments.append(self.assignment(found))
            else:
                words.append(self.some_word())
        return Simple(line, assignments, words, stdin, writes)

    def assignment(self, found: re.Match[str]) -> Assignment:
        self.at = found.end()
        if placeholder := _PLACEHOLDER.match(self.text, self.at):
            line, self.at = self.line(), placeholder.end()
            return Assignment(found[1], False, (Variable(found[1], line, True),))
        value: Word | list[Word] = self.array() if self.peek() == "(" else self.word()
        return Assignment(found[1], bool(found[3]), value, found[2] or "")

    def array(self) -> list[Word]:
        line = self.line()
        words: list[Word] = []
        self.at += 1
        while True:
            self.blanks()
            if self.peek() == "\n":
                self.at += 1
            elif self.peek() == ")":
                self.at += 1
                return words
            elif self.at >= len(self.text):
                self.fail("( of an array is not closed", line)
            else:
                words.append(self.some_word())

    def redirections(self) -> None:
        self.blanks()
        while self.redirection([], []):
            self.blanks()

    def redirection(self, stdin: list[Word], writes: list[Word]) -> bool:
        """Pass one redirection, if it comes next."""
        number = re.compile(r"[0-9]+(?=[<>])").match(self.text, self.at)
        start = number.end() if number else self.at
        operator = next((mark for mark in _OPERATORS_BY_LENGTH if self.text.startswith(mark, start)), "")
        if operator not in _REDIRECTIONS + _HEREDOCS or self.text[start : start + 2] in ("<(", ">("):
            return self._process_substitution(start)
        self.at = start + len(operator)
        self.blanks()
        target = self.word()
        if operator in _HEREDOCS:
            quoted = any(isinstance(part, Literal) and part.quoted for part in target)
            self._heredocs.append((literal(target), quoted, stdin.append))
            if operator == "<<-":
                self._heredocs[-1] = ("\t" + literal(target), quoted, stdin.append)
        elif operator == "<<<":
            stdin.append(target)
        elif operator in (">", ">>", ">|"):
            writes.append(target)
        return True

    def _process_substitution(self, start: int) -> bool:
        if self.text[start : start + 2] not in ("<(", ">("):
            return False
        self.at = start
        self._balanced(2, ")")
        return True

    def _read_heredocs(self) -> None:
        for mark, quoted, give in self._heredocs:
            start, opened = self.at, self.line()
            while True:
                end = self.text.find("\n", self.at)
                end = len(self.text) if end < 0 else end
                row = self.text[self.at : end]
                if (row.lstrip("\t") if mark.startswith("\t") else row).rstrip("\r") == mark.lstrip("\t"):
                    break
                if end >= len(self.text):
                    self.fail(f"the here-document {mark.strip()} is not closed", opened)
                self.at = end + 1
            body = self.cut(start, self.at)
            give(tuple(Literal(piece, True) for piece in body) if quoted else Words(body, self.where).word("", True))
            self.at = end
        self._heredocs.clear()
