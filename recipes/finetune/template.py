"""An example as tokens, with the tokens that the loss counts: those of answers. Imports neither torch nor NeMo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slipway.configs import Data, Refusal
from slipway.configs.schema import Template
from slipway.recipes.finetune.examples import Example, Turn, Unusable

_GENERATION = "{% generation"  # a template marks answers itself with this block of transformers'


@dataclass(frozen=True)
class Tokens:
    """The tokens of an example.

    Attributes:
        ids: int32 [n].
        answer: bool [n], whether a token belongs to an answer.
    """

    ids: npt.NDArray[np.int32]
    answer: npt.NDArray[np.bool_]


class Tokenization:
    """Turns examples into tokens.

    Args:
        tokenizer: of transformers, a fast one: it says which characters a token stands for.
        data: which template, and a file with another one.

    Raises:
        Refusal: the tokenizer is not a fast one, or the data ask for a chat template and there is none.
    """

    def __init__(self, tokenizer: Any, data: Data) -> None:
        self.tokenizer = tokenizer
        self.template = data.template
        if not tokenizer.is_fast:
            raise Refusal(f"the tokenizer {tokenizer.name_or_path} has no tokenizer.json", "Give a tokenizer that has.")
        self.chat_template = _chat_template(tokenizer, data)
        self.marks = bool(self.chat_template) and _GENERATION in self.chat_template.replace("{%-", "{%")

    def __call__(self, example: Example) -> Tokens:
        """The tokens of an example.

        Raises:
            Unusable: the template cannot be applied, or does not keep an answer.
        """
        if not self.by_template(example):
            return self._as_it_stands(example)
        if not self.chat_template:
            raise Unusable(
                "is a conversation, and the tokenizer has no chat template: give one with data.chat_template"
            )
        if self.marks:
            return self._as_marked(example)
        text = self.render(example.turns)
        return self._of_spans(text, self._answers(example, text), special=False)

    def by_template(self, example: Example) -> bool:
        """Whether the chat template makes the text of an example."""
        if self.template is not Template.auto:
            return self.template is Template.chat
        several = len(example.turns) > 2  # which cannot be joined as they stand
        return example.converses and (bool(self.chat_template) or several)

    def prompt(self, example: Example) -> str:
        """What a model is given to answer an example's last turn."""
        *before, _ = example.turns
        if self.by_template(example):
            return self.render(before, answer_follows=True)
        return _joined(example)[0]

    def render(self, turns: Sequence[Turn], *, answer_follows: bool = False) -> str:
        """The text of turns by the chat template.

        Raises:
            Unusable: the template refuses them.
        """
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=self.chat_template,
                    tokenize=False,
                    add_generation_prompt=answer_follows,
                )
            )
        except Exception as error:  # a template raises what it likes
            raise Unusable(f"is refused by the chat template: {' '.join(str(error).split())}") from None

    def _answers(self, example: Example, text: str) -> list[tuple[int, int]]:
        """Where the answers stand in the text, with what the template ends them with, but no space after it."""
        spans = []
        for index, turn in enumerate(example.turns):
            if turn.role != "assistant":
                continue
            before = self.render(example.turns[:index], answer_follows=True)
            until = self.render(example.turns[: index + 1])
            if not (until.startswith(before) and text.startswith(until)):
                raise Unusable(
                    "has an answer that the chat template writes otherwise when turns follow it: mark answers in a "
                    "template of your own with {% generation %}, and give it with data.chat_template"
                )
            end = len(until.rstrip())
            if turn.text.strip() not in text[len(before) : end]:
                raise Unusable("loses an answer in the chat template")
            spans.append((len(before), end))
        return spans

    def _as_it_stands(self, example: Example) -> Tokens:
        prompt, answer = _joined(example)
        tokens = self._of_spans(prompt + answer, [(len(prompt), len(prompt) + len(answer))], special=True)
        eos = self.tokenizer.eos_token_id
        if eos is None or (len(tokens.ids) and tokens.ids[-1] == eos):
            return tokens
        return Tokens(np.append(tokens.ids, np.int32(eos)), np.append(tokens.answer, True))

    def _of_spans(self, text: str, spans: list[tuple[int, int]], *, special: bool) -> Tokens:
        """The tokens of a text; those that reach into a span are of an answer."""
        made = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        offsets = np.asarray(made["offset_mapping"], np.int64).reshape(-1, 2)
        answer = np.zeros(len(offsets), np.bool_)
        for start, end in spans:
            answer |= (offsets[:, 1] > start) & (offsets[:, 0] < end) & (offsets[:, 1] > offsets[:, 0])
        return Tokens(np.asarray(made["input_ids"], np.int32), answer)

    def _as_marked(self, example: Example) -> Tokens:
        messages = [{"role": turn.role, "content": turn.text} for turn in example.turns]
        try:
            made = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.chat_template,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
        except Exception as error:  # a template raises what it likes
            raise Unusable(f"is refused by the chat template: {' '.join(str(error).split())}") from None
        answer = np.asarray(made["assistant_masks"], np.bool_)
        ids = np.asarray(made["input_ids"], np.int32)
        kept = self.tokenizer.decode(ids[answer])
        for turn in example.turns:
            if turn.role == "assistant" and turn.text.strip() not in kept:
                raise Unusable("loses an answer in the chat template")
        return Tokens(ids, answer)


def _joined(example: Example) -> tuple[str, str]:
    """A prompt and its answer as they stand; instructions are one line apart."""
    if len(example.turns) != 2:
        raise Unusable("is a conversation of several turns, which data.template=plain cannot join")
    prompt, answer = (turn.text for turn in example.turns)
    return (prompt + "\n" if example.converses else prompt), answer


def _chat_template(tokenizer: Any, data: Data) -> str:
    if data.chat_template:
        path = Path(data.chat_template)
        if not path.is_file():
            raise Refusal(f"there is no chat template {path}", "Give a file with a Jinja template.")
        return path.read_text()
    found = tokenizer.chat_template
    if isinstance(found, dict):  # several by name
        found = found.get("default")
    if not found and data.template is Template.chat:
        raise Refusal(
            f"data.template=chat, and the tokenizer {tokenizer.name_or_path} has no chat template",
            "Give one with data.chat_template=FILE, or use data.template=plain.",
        )
    return str(found or "")


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of transformers in a folder, or of that name.

    Raises:
        Refusal: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise Refusal(
            f"the tokenizer {folder} cannot be read: {' '.join(str(error).split())}",
            "Give the folder of the base's tokenizer with data.tokenizer.",
        ) from None
