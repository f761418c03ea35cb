"""A plain file of Megatron-LM's arguments, one or several a line, with comments."""

from __future__ import annotations

import re

from slipway.launch.foreign.megatron.arguments import definitions, parse
from slipway.launch.foreign.megatron.read import reading_of
from slipway.launch.foreign.megatron.run import Machines
from slipway.launch.foreign.reading import File, Reading, Request, require_whole
from slipway.launch.foreign.shell.text import Piece, Text, words

NAME = "file of Megatron-LM arguments"
_COMMENT = re.compile(r"(^|\s)#.*")
_CONTINUED = re.compile(r"\\\s*$")


def recognizes(file: File) -> bool:
    """Whether the first word is an argument, and one of the words is Megatron-LM's."""
    found = _words(file.text)
    flags = {word[0].text.partition("=")[0] for word in found}
    return bool(found) and found[0][0].text.startswith("--") and bool(flags & definitions().keys())


def read(file: File, request: Request) -> Reading:
    """The run that the arguments describe, on the GPUs that gpus= gives."""
    require_whole(file)
    return reading_of(NAME, file, request, parse(_words(file.text), file.name), Machines(), [])


def _words(text: str) -> list[Text]:
    found: list[Text] = []
    for number, row in enumerate(text.splitlines(), 1):
        row = _CONTINUED.sub("", _COMMENT.sub("", row))
        for word in words((Piece(row, number),)):
            quoted = word[0].text
            bare = quoted[1:-1] if len(quoted) > 1 and quoted[0] == quoted[-1] and quoted[0] in "\"'" else quoted
            found.append((Piece(bare, number),))
    return found
