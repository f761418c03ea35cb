"""A training log of Megatron-LM, whose first lines print every argument with its value."""

from __future__ import annotations

import ast
import re
from typing import Any

from slipway.configs import Refusal
from slipway.launch.foreign.megatron.arguments import Arguments, Given, defaults
from slipway.launch.foreign.megatron.read import reading_of
from slipway.launch.foreign.megatron.run import Machines
from slipway.launch.foreign.reading import File, Reading, Request

NAME = "Megatron-LM training log"
_HEAD = re.compile(r"-{8,} arguments -{8,}")
_END = re.compile(r"-{8,} end of arguments -{8,}")
_ROW = re.compile(r"^(?:.*?[:\]] ?)?\s*(\w+) \.{2,}[ ]?(.*)$")
_PADDED = re.compile(r"padded vocab \(size: (\d+)\)")
_WORDS = {
    "torch.float32": "fp32",
    "torch.float": "fp32",
    "torch.bfloat16": "bf16",
    "torch.float16": "fp16",
    "torch.half": "fp16",
    "torch.uint8": "fp8",
}


def recognizes(file: File) -> bool:
    """Whether the file holds Megatron-LM's table of arguments."""
    return bool(_HEAD.search(file.text))


def read(file: File, request: Request) -> Reading:
    """The run that the log's arguments describe, on the GPUs that it had."""
    values, args = _table(file), Arguments(file.name)
    known = defaults()
    for dest, (value, line) in values.items():
        if dest not in known:
            continue  # what Megatron-LM derives from its arguments
        args.add(Given(dest, dest, known[dest] if value is None else value, str(value), line))
    assumed: list[str] = []
    if found := _PADDED.search(file.text):
        args.add(
            Given("vocab_size", "vocab_size", int(found[1]), found[1], file.text.count("\n", 0, found.start()) + 1)
        )
        args.add(Given("tokenizer_type", "tokenizer_type", "", "", 0))
    world = values.get("world_size", (0, 0))[0]
    machines = Machines(world if isinstance(world, int) else 0)
    return reading_of(NAME, file, request, args, machines, assumed)


def _table(file: File) -> dict[str, tuple[Any, int]]:
    """Each argument of the table with its value and line."""
    start = _HEAD.search(file.text)
    end = _END.search(file.text, start.end() if start else 0)
    if start is None or end is None:
        raise Refusal(f"{file.path} ends within its table of arguments", "Give a log that has the whole table.")
    first = file.text.count("\n", 0, start.start()) + 1
    values: dict[str, tuple[Any, int]] = {}
    for number, row in enumerate(file.text[start.start() : end.start()].splitlines()):
        if found := _ROW.match(row):
            values[found[1]] = (_value(found[2].strip()), first + number)
    if not values:
        raise Refusal(f"{file.path} has an empty table of arguments", "Give a log that has the whole table.")
    return values


def _value(text: str) -> Any:
    text = re.sub(r"^AttnBackend\.", "", text)
    if text in _WORDS:
        return _WORDS[text]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
