"""Lines of a .jsonl file as conversations: the formats that instructions come in. Imports neither torch nor NeMo.

================  ==============================================================================================
messages          OpenAI's: [{"role": "user", "content": "..."}, ...]
conversations     ShareGPT's: [{"from": "human", "value": "..."}, ...], perhaps with "system" beside it
prompt            with "completion": text, or messages
instruction       with "output", and perhaps "input": Alpaca's
input             with "output": NeMo's
================  ==============================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipway.configs import Refusal

TRAINING, VALIDATION = "training.jsonl", "validation.jsonl"  # NeMo's names in a folder of instructions
ROLES = ("system", "user", "assistant", "tool")
_OTHER_WORDS = {"human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
_FORMATS = "messages, conversations, prompt and completion, instruction and output, or input and output"


class Unusable(ValueError):
    """Why a line is no example; lines with the same words are counted together."""


@dataclass(frozen=True)
class Turn:
    """One message: who speaks (one of :data:`ROLES`), and the text."""

    role: str
    text: str


@dataclass(frozen=True)
class Example:
    """A conversation that ends with an answer.

    Attributes:
        turns: at least a prompt and an answer.
        converses: whether it is written as a conversation; else its texts are joined as they stand.
    """

    turns: tuple[Turn, ...]
    converses: bool


def read_example(line: str) -> Example:
    """The example that a line holds.

    Raises:
        Unusable: it holds none.
    """
    try:
        held = json.loads(line)
    except ValueError:
        raise Unusable("is not JSON") from None
    if not isinstance(held, dict):
        raise Unusable("is not a JSON object")
    for key, read in _READERS.items():
        if key in held:
            example = read(held)
            break
    else:
        raise Unusable(f"has the keys {', '.join(sorted(held)) or 'none'}, and none of the formats: {_FORMATS}")
    _require_answer(example)
    return example


def _require_answer(example: Example) -> None:
    if not any(turn.role == "assistant" for turn in example.turns):
        raise Unusable("has no answer: no turn of the assistant")
    if example.turns[0].role == "assistant" and len(example.turns) == 1:
        raise Unusable("has no prompt")
    if example.turns[-1].role != "assistant":
        raise Unusable("does not end with an answer of the assistant")
    for turn in example.turns:
        if turn.role == "assistant" and not turn.text.strip():
            raise Unusable("has an empty answer")
    if not any(turn.text.strip() for turn in example.turns if turn.role != "assistant"):
        raise Unusable("has an empty prompt")


def _of_messages(messages: Any, role_key: str, text_key: str) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages:
        raise Unusable("has no list of messages")
    return tuple(_turn(message, role_key, text_key) for message in messages)


def _turn(message: Any, role_key: str, text_key: str) -> Turn:
    if not isinstance(message, dict) or role_key not in message:
        raise Unusable(f"has a message without {role_key!r}")
    word = str(message[role_key]).lower()
    role = _OTHER_WORDS.get(word, word)
    if role not in ROLES:
        raise Unusable(f"has the unknown role {message[role_key]!r}; known are {', '.join((*ROLES, *_OTHER_WORDS))}")
    text = message.get(text_key)
    if isinstance(text, list):  # OpenAI's parts
        text = "".join(part.get("text", "") for part in text if isinstance(part, dict) and part.get("type") == "text")
    if not isinstance(text, str):
        raise Unusable(f"has a message whose {text_key!r} is no text")
    return Turn(role, text)


def _text(held: dict[str, Any], key: str) -> str:
    text = held.get(key)
    if not isinstance(text, str):
        raise Unusable(f"has no text under {key!r}")
    return text


def _messages(held: dict[str, Any]) -> Example:
    return Example(_of_messages(held["messages"], "role", "content"), converses=True)


def _conversations(held: dict[str, Any]) -> Example:
    turns = _of_messages(held["conversations"], "from", "value")
    system = held.get("system")
    if isinstance(system, str) and system.strip() and turns[0].role != "system":
        turns = (Turn("system", system), *turns)
    return Example(turns, converses=True)


def _prompt(held: dict[str, Any]) -> Example:
    prompt, completion = held["prompt"], held.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return Example(_of_messages([*prompt, *completion], "role", "content"), converses=True)
    return Example((Turn("user", _text(held, "prompt")), Turn("assistant", _text(held, "completion"))), converses=False)


def _alpaca(held: dict[str, Any]) -> Example:
    prompt = _text(held, "instruction")
    if held.get("input"):
        prompt += "\n\n" + _text(held, "input")
    return Example((Turn("user", prompt), Turn("assistant", _text(held, "output"))), converses=True)


def _input(held: dict[str, Any]) -> Example:
    """NeMo's own template puts a space between both."""
    prompt, answer = _text(held, "input"), _text(held, "output")
    between = "" if prompt.endswith((" ", "\n")) or answer.startswith((" ", "\n")) else " "
    return Example((Turn("user", prompt), Turn("assistant", between + answer)), converses=False)


_READERS: dict[str, Callable[[dict[str, Any]], Example]] = {
    "messages": _messages,
    "conversations": _conversations,
    "prompt": _prompt,
    "instruction": _alpaca,
    "input": _input,
}


def files_of(path: str) -> tuple[Path, Path | None]:
    """The file of the training set that ``path`` is or holds, and that of a validation set beside it.

    Raises:
        Refusal: there is none.
    """
    given = Path(path)
    if given.is_file():
        return given, None
    if not given.is_dir():
        raise Refusal(f"there is no file or folder {path} with instructions", "Give a .jsonl file, or their folder.")
    if (given / TRAINING).is_file():
        return given / TRAINING, given / VALIDATION if (given / VALIDATION).is_file() else None
    found = sorted(file for file in given.glob("*.jsonl") if file.name not in (VALIDATION, "test.jsonl"))
    if len(found) != 1:
        raise Refusal(
            f"{path} holds {len(found)} .jsonl files, and none is named {TRAINING}",
            f"Name it {TRAINING} (and the validation set {VALIDATION}), or give files: data.paths=[A.jsonl,B.jsonl].",
        )
    return found[0], given / VALIDATION if (given / VALIDATION).is_file() else None


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not empty, with their numbers, from 1.

    Raises:
        Refusal: it is not UTF-8.
    """
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
        except UnicodeDecodeError:
            raise Refusal(f"{path} is not UTF-8", "Convert it, for example with iconv.") from None
