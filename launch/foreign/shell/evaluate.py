"""Follow a parsed script without running anything: its variables, arrays, branches and loops, and which commands it
reaches with which words. What only a command could compute stays unknown, by the name of the variable that holds it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from slipway.configs import Refusal
from slipway.launch.foreign.shell import nodes, syntax
from slipway.launch.foreign.shell.arithmetic import NotArithmetic, compute
from slipway.launch.foreign.shell.characters import quoted_word
from slipway.launch.foreign.shell.conditions import holds
from slipway.launch.foreign.shell.nodes import Computed, Literal, Node, Variable, Word
from slipway.launch.foreign.shell.text import NAME, Piece, Text, line_of, plain, unknown, words

MOST_COMMANDS = 20_000  # that a script may reach, its loops included
_DEEPEST = 20  # calls of functions and of other scripts inside one another
_PRINTED = ("echo", "printf", "true", ":", "set", "shift", "ulimit", "umask", "wait", "trap", "unset", "source", ".")


class Command(NamedTuple):
    """A command that the script reaches, its words expanded."""

    words: list[Text]
    line: int
    stdin: Text = ()


class _Exit(Exception):
    """The script ends here."""


class _Leave(Exception):
    """A function, or one turn of a loop, ends here."""


@dataclass
class Shell:
    """The state of a script that is followed.

    Args:
        where: the file, as a message names it.
        settings: values that the user gives (``--set``); they come before the script's own.
        environment: values that a launcher sets, before the script's own.
        included: the text of another script by its name, where it is at hand.
    """

    where: str
    settings: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    included: Callable[[str], str | None] = lambda name: None
    commands: list[Command] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    """Conditions that could not be evaluated, in words."""
    ended: str = ""
    """Where and why the script ends before its last line, in words."""
    files: dict[str, Text] = field(default_factory=dict)
    """What the script writes with a here-document, by file name."""

    def __post_init__(self) -> None:
        self.variables: dict[str, list[Text]] = {}
        self._functions: dict[str, list[Node]] = {}
        self._reached = 0
        self._depth = 0
        self._because = ""

    def follow(self, text: Text) -> None:
        """Follow a whole script.

        Raises:
            Refusal: it is not a shell script.
        """
        with contextlib.suppress(_Exit, _Leave):
            self._run(syntax.parse(text, self.where))

    # Variables

    def value(self, name: str, line: int) -> Text:
        """The scalar value of a variable; an unknown piece where nothing defines it."""
        found = self.lookup(name)
        if found is None:
            return (Piece("", line, name),)
        return found[0] if found else ()

    def lookup(self, name: str) -> list[Text] | None:
        """The elements of a variable; None where nothing defines it."""
        if name in self.settings:
            return [(Piece(self.settings[name], 0),)]
        if name in self.variables:
            return self.variables[name]
        if name in self.environment:
            return [(Piece(self.environment[name], 0),)]
        return None

    def assign(self, name: str, value: list[Text], append: bool = False) -> None:
        """Set a variable. A value that is not known is asked for by the variable's name."""
        named = [tuple(_named(piece, name) for piece in element) for element in value]
        self.variables[name] = [*(self.variables.get(name, []) if append else []), *named]

    # Expansion

    def fields(self, word: Word) -> list[Text]:
        """The words that a word expands to."""
        out: list[Text] = []
        current: Text | None = None
        for part in word:
            if isinstance(part, Literal):
                current = (*(current or ()), part.piece)
                continue
            elements = self._elements(part)
            if part.quoted:
                if len(elements) > 1 or (elements == [] and len(word) <= 2):
                    head = [(*(current or ()), *elements[0])] if elements else []
                    out += [*head, *elements[1:-1]]
                    current = elements[-1] if len(elements) > 1 else None
                else:
                    current = (*(current or ()), *(elements[0] if elements else ()))
                continue
            for number, element in enumerate(elements):
                split = words(element)
                if number or (element and not element[0].unknown and element[0].text[:1].isspace()):
                    out += [current] if current is not None else []
                    current = None
                for i, piece in enumerate(split):
                    if i:
                        out += [current] if current is not None else []
                        current = None
                    current = (*(current or ()), *piece)
                if element and not element[-1].unknown and element[-1].text[-1:].isspace() and current is not None:
                    out.append(current)
                    current = None
        return [*out, current] if current is not None else out

    def joined(self, word: Word) -> Text:
        """The one value that a word expands to where it is not divided: of an assignment, in a test."""
        out: list[Piece] = []
        for part in word:
            if isinstance(part, Literal):
                out.append(part.piece)
                continue
            for number, element in enumerate(self._elements(part)):
                out += [Piece(" ", part.line)] if number else []
                out += element
        return tuple(out)

    def _elements(self, part: Variable | Computed) -> list[Text]:
        if isinstance(part, Computed):
            if not part.arithmetic:
                return [self._substituted(part)]
            return [self._arithmetic(part.text, part.line)]
        if part.length:
            found = self.lookup(part.name)
            size = len(found or []) if part.index in ("@", "*") else len(plain(self.value(part.name, part.line)))
            unset = found is None or unknown(self.value(part.name, part.line))
            return [(Piece("", part.line, part.name) if unset else Piece(str(size), part.line),)]
        return self._operated(part, self._plain_elements(part))

    def _plain_elements(self, part: Variable) -> list[Text] | None:
        """The elements of ``$NAME`` or ``${NAME[index]}``; None where nothing defines it."""
        if part.name in ("@", "*"):
            return self.lookup("@") or []
        if part.name in ("0", "BASH_SOURCE"):
            return [(Piece(self.where, part.line),)]
        if part.name == "PWD" and self.lookup("PWD") is None:
            return [(Piece(".", part.line),)]
        if part.name in ("$", "!", "?"):
            return [(Piece("0", part.line),)]
        found = self.lookup(part.name)
        if found is None:
            return None
        if part.index in ("@", "*"):
            return found
        if part.index:
            return self._indexed(found, part)
        return found[:1] or [()]

    def _indexed(self, found: list[Text], part: Variable) -> list[Text]:
        try:
            index = compute(part.index.replace("$", ""), self._number)
            return [found[index]]
        except (NotArithmetic, IndexError):
            return [(Piece("", part.line, part.name),)]

    def _operated(self, part: Variable, elements: list[Text] | None) -> list[Text]:
        """The elements under an operator such as ``:-``."""
        empty = elements is None or (part.operator.startswith(":") and not any(map(plain, elements)))
        kind = part.operator[-1:]
        if kind in ("-", "=") and part.operator in ("-", ":-", "=", ":="):
            if not empty:
                return elements or []
            value = self.joined(part.operand)
            if kind == "=":
                self.assign(part.name, [value])
            return [value]
        if part.operator in ("+", ":+"):
            return [] if empty else [self.joined(part.operand)]
        if elements is None:
            return [] if part.name in ("@", "*") else [(Piece("", part.line, part.name),)]
        if part.operator in ("", "?", ":?"):
            return elements
        return [self._cut(element, part) for element in elements]

    def _cut(self, element: Text, part: Variable) -> Text:
        """The element under an operator that removes or replaces text."""
        if unknown(element):
            return element
        text, pattern = plain(element), plain(self.joined(part.operand))
        line = line_of(element) or part.line
        if part.operator in ("#", "##", "%", "%%") and not set(pattern) & set("*?["):
            cut = text.removeprefix(pattern) if "#" in part.operator else text.removesuffix(pattern)
            return (Piece(cut, line),)
        if part.operator == "##" and pattern.startswith("*") and not set(pattern[1:]) & set("*?["):
            return (Piece(text.rpartition(pattern[1:])[2], line),)
        if part.operator == "%%" and pattern.endswith("*") and not set(pattern[:-1]) & set("*?["):
            return (Piece(text.partition(pattern[:-1])[0], line),)
        if part.operator in ("/", "//") and not set(pattern) & set("*?["):
            old, _, new = pattern.partition("/")
            return (Piece(text.replace(old, new, -1 if part.operator == "//" else 1), line),)
        if part.operator in ("^", "^^", ",", ",,"):
            change = str.upper if "^" in part.operator else str.lower
            return (Piece(change(text) if len(part.operator) > 1 else change(text[:1]) + text[1:], line),)
        return (Piece("", line, part.name),)

    def _substituted(self, part: Computed) -> Text:
        """What ``$(...)`` gives where it only prints its words or a path; otherwise unknown."""
        body = syntax.parse(part.text, self.where)
        last = body[0] if len(body) == 1 else None
        if isinstance(last, nodes.AndOr) and isinstance(last.left, nodes.Simple):  # cd FOLDER && pwd
            moved = [plain(text) for text in self._expand(last.left)]
            after = [plain(text) for text in self._expand(last.right)] if isinstance(last.right, nodes.Simple) else []
            if moved[:1] == ["cd"] and after[:1] == ["pwd"]:
                return (Piece(moved[-1], part.line),)
        if isinstance(last, nodes.Simple) and last.words and not last.assignments:
            printed = self._printed(self._expand(last), part.line)
            if printed is not None:
                return printed
        return (Piece("", part.line, f"$({plain(part.text).strip()})"),)

    def _expand(self, command: nodes.Simple) -> list[Text]:
        return [field for word in command.words for field in self.fields(word)]

    def _printed(self, expanded: list[Text], line: int) -> Text | None:
        """What a command prints that only rearranges its words; paths are those of the script's own folder."""
        name, rest = plain(expanded[0]) if expanded else "", expanded[1:]
        if name == "echo" and rest and plain(rest[0]) not in ("-e", "-n"):
            return tuple(piece for text in rest for piece in (*text, Piece(" ", line)))[:-1]
        if name == "pwd":
            return (Piece(".", line),)
        if name not in ("basename", "dirname", "readlink", "realpath") or not rest or unknown(rest[-1]):
            return None
        path = PurePosixPath(plain(rest[-1]))
        text = {"basename": path.name, "dirname": str(path.parent)}.get(name, str(path))
        return (Piece(text, line),)

    def _arithmetic(self, text: Text, line: int) -> Text:
        expanded = self._expanded(text)
        if needed := unknown(expanded):
            return (Piece("", line, needed),)
        missing: list[str] = []

        def number(name: str) -> int:
            value = self.value(name, line)
            if needed := unknown(value):
                missing.append(needed)
                return 1
            return self._number(name)

        try:
            value = compute(plain(expanded), number)
        except NotArithmetic:
            return (Piece("", line, missing[0] if missing else f"$(({plain(text)}))"),)
        return (Piece("", line, missing[0]) if missing else Piece(str(value), line),)

    def _expanded(self, text: Text) -> Text:
        """Text with its ``$NAME`` and ``${NAME}`` replaced, as within double quotes."""
        return self.joined(quoted_word(text, self.where))

    def _number(self, name: str) -> int:
        text = plain(self.value(name, 0)).strip()
        if not re.fullmatch(r"[-+]?[0-9]+", text or "0"):
            raise NotArithmetic(name)
        return int(text or "0")

    # Commands

    def _run(self, script: Iterable[Node]) -> bool | None:
        status: bool | None = True
        for node in script:
            self._reached += 1
            if self._reached > MOST_COMMANDS:
                raise Refusal(f"{self.where} does not end within {MOST_COMMANDS:,} commands", "Check its loops.")
            status = self._node(node)
        return status

    def _node(self, node: Node) -> bool | None:
        """Follow one command; whether it succeeds, None where that is not known."""
        if isinstance(node, nodes.Simple):
            return self._simple(node)
        if isinstance(node, nodes.Arithmetic):
            value = self._arithmetic(node.text, node.line)
            return None if unknown(value) else plain(value) != "0"
        if isinstance(node, nodes.Condition):
            return self._loop(node) if node.loop else self._condition(node)
        if isinstance(node, nodes.For):
            return self._for(node)
        if isinstance(node, nodes.Case):
            return self._case(node)
        if isinstance(node, nodes.Function):
            self._functions[node.name] = node.body
            return True
        if isinstance(node, nodes.AndOr):
            left = self._node(node.left)
            if left is None:
                self._assume(node.left, "false")
            return self._node(node.right) if (left is True) == (node.operator == "&&") else left
        status = self._run(node.body)
        return status if not node.negated or status is None else not status

    def _assume(self, test: Node, what: str) -> None:
        self.assumed.append(f"line {test.line}: a condition that only a shell can evaluate is taken to be {what}")

    def _condition(self, node: nodes.Condition) -> bool | None:
        for test, body in node.branches:
            status = self._test(test)
            if status is None and test:
                self._assume(test[-1], "false")
            if status:
                before, self._because = self._because, f"the condition on line {test[-1].line} holds" if test else ""
                status = self._run(body)
                self._because = before
                return status
        return self._run(node.otherwise)

    def _test(self, test: list[Node]) -> bool | None:
        """Whether a condition holds. Of commands other than tests that is not known."""
        status = self._run(test)
        last = test[-1] if test else None
        if isinstance(last, nodes.Group) and len(last.body) == 1:
            last = last.body[0]
        if isinstance(last, nodes.Simple) and last.words:
            first = plain(self.joined(last.words[0]))
            return status if first in ("[", "[[", "test", "true", "false", ":") else None
        return None if isinstance(last, nodes.Group) else status

    def _loop(self, node: nodes.Condition) -> bool | None:
        test, body = node.branches[0]
        while (status := self._test(test)) is not None and status != node.until:
            try:
                self._run(body)
            except _Leave:
                break
        if status is None:
            self._assume(node, "false, and its loop left out")
        return True

    def _for(self, node: nodes.For) -> bool | None:
        if not node.name:
            self._assume(node, "false, and its loop left out")
            return True
        for word in node.words:
            for value in self.fields(word):
                self.assign(node.name, [value])
                try:
                    self._run(node.body)
                except _Leave:
                    return True
        return True

    def _case(self, node: nodes.Case) -> bool | None:
        value = self.joined(node.word)
        if unknown(value):
            self._assume(node, "none of its cases")
            return True
        for patterns, body in node.arms:
            if any(holds(["[[", plain(value), "==", plain(self.joined(pattern)), "]]"]) for pattern in patterns):
                return self._run(body)
        return True

    def _simple(self, node: nodes.Simple) -> bool | None:
        for assignment in node.assignments:
            self._assign(assignment)
        if not node.words:
            return True
        expanded = [field for word in node.words for field in self._words_of(node, word)]
        if not expanded:
            return True
        name = plain(expanded[0])
        if name in ("[", "[[", "test"):
            return None if any(map(unknown, expanded)) and not self._about_unset(node) else self._holds(node, expanded)
        stdin = self.joined(node.stdin[-1]) if node.stdin else ()
        return self._builtin(name, node, expanded, stdin)

    def _words_of(self, node: nodes.Simple, word: Word) -> list[Text]:
        """A command's word; inside ``[[`` no value is divided."""
        first = node.words[0]
        if isinstance(first[0], Literal) and first[0].piece.text in ("[[",):
            return [self.joined(word)]
        return self.fields(word)

    def _about_unset(self, node: nodes.Simple) -> bool:
        """Whether all that a test lacks are variables that nothing defines, which a shell takes to be empty."""
        parts = [part for word in node.words for part in word]
        for part in parts:
            value = [] if isinstance(part, Literal) else self._elements(part)
            for needed in (unknown(element) for element in value):
                if needed and (not NAME.fullmatch(needed) or self.lookup(needed) is not None):
                    return False
        return True

    def _holds(self, node: nodes.Simple, expanded: list[Text]) -> bool | None:
        return holds(["" if unknown(text) else plain(text) for text in expanded])

    def _assign(self, assignment: nodes.Assignment) -> None:
        name = assignment.name
        if isinstance(assignment.value, list):
            elements = [field for word in assignment.value for field in self.fields(word)]
            self.assign(name, elements, assignment.append)
            return
        value = self.joined(assignment.value)
        if assignment.index:
            self.assign(name, [value], append=True)
        elif assignment.append:
            before = self.lookup(name) or [()]
            self.assign(name, [(*before[0], *value), *before[1:]])
        else:
            self.assign(name, [value])

    def _builtin(self, name: str, node: nodes.Simple, expanded: list[Text], stdin: Text) -> bool | None:
        """Follow what the shell itself does; any other command is recorded, and taken to succeed."""
        if name == "exit":
            self.ended = f"line {node.line}" + (f", where {self._because}" if self._because else "")
            raise _Exit
        if name in ("return", "break"):
            raise _Leave
        if name in ("true", ":", "false"):
            return name != "false"
        if name == "read" and stdin:
            self.assign(plain(expanded[-1]), [stdin])
        elif name in ("read", "mapfile", "readarray", "getopts"):
            self.assign(plain(expanded[-1]), [(Piece("", node.line, plain(expanded[-1])),)])
            return None if name == "getopts" else True
        elif name == "unset":
            for text in expanded[1:]:
                self.variables.pop(plain(text), None)
        elif name in ("source", ".") and len(expanded) > 1:
            self._include(expanded[1], node.line)
        elif name in self._functions:
            self._call(self._functions[name], expanded[1:])
        elif name == "cat" and stdin and node.writes:
            self.files[plain(self.joined(node.writes[-1]))] = stdin
        elif name not in _PRINTED + syntax.DECLARATIONS:
            self.commands.append(Command(expanded, node.line, stdin))
        return True

    def _include(self, name: Text, line: int) -> None:
        text = None if unknown(name) else self.included(plain(name))
        if text is None:
            self.assumed.append(f"line {line}: {plain(name)} is not read")
            return
        self.deeper(lambda: self._run(syntax.parse((Piece(text, 1),), plain(name))))

    def _call(self, body: list[Node], arguments: list[Text]) -> None:
        before = {name: self.variables.get(name) for name in ["@", *map(str, range(1, len(arguments) + 1))]}
        self.variables["@"] = arguments
        self.variables |= {str(i): [text] for i, text in enumerate(arguments, 1)}
        self.deeper(lambda: self._run(body))
        for name, value in before.items():
            self.variables.pop(name, None)
            if value is not None:
                self.variables[name] = value

    def deeper(self, follow: Callable[[], object]) -> None:
        """Follow a function or another script, unless they call each other without end."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise Refusal(f"{self.where} calls itself without end")
        try:
            with contextlib.suppress(_Leave):
                follow()
        finally:
            self._depth -= 1


def _named(piece: Piece, name: str) -> Piece:
    """An unknown piece under the name of the variable that it is assigned to, unless it has a variable's name."""
    return Piece("", piece.line, name) if piece.unknown and not NAME.fullmatch(piece.unknown) else piece
