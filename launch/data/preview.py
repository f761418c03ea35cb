"""What is learned of a file of instructions: its examples as a model reads them, and the tokens of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slipway.configs import Data, Refusal
from slipway.recipes.finetune.examples import files_of
from slipway.recipes.finetune.template import Tokenization, Tokens, load_tokenizer
from slipway.recipes.finetune.tokenized import Problems, examples, packed


@dataclass(frozen=True)
class Part:
    """A piece of text, and whether it is learned."""

    text: str
    learned: bool


@dataclass(frozen=True)
class Shown:
    """One example.

    Attributes:
        line: of the file.
        parts: its text.
        tokens: of which the model reads all but the last, and learns ``learned``.
    """

    line: int
    parts: tuple[Part, ...]
    tokens: int
    learned: int


@dataclass(frozen=True)
class Preview:
    """A file, as a run with sequences of ``seq_length`` tokens would train on it.

    Attributes:
        shown: the first examples.
        problems: why lines are no examples: the reason, their number, and the first of them.
        sequences: how many the packed examples fill, ``filled`` the share of them that is no padding.
        longest: tokens of the longest example.
    """

    path: Path
    seq_length: int
    shown: tuple[Shown, ...]
    problems: tuple[tuple[str, int, int], ...]
    examples: int
    tokens: int
    learned: int
    longest: int
    sequences: int
    filled: float


def preview(path: str, tokenizer: str, data: Data, seq_length: int, show: int) -> Preview:
    """Read a file of instructions, or the training set of a folder.

    Raises:
        Refusal: there is no such file, no tokenizer, or no chat template where one is asked for.
    """
    file = files_of(path)[0]
    made = load_tokenizer(tokenizer)
    tokenize = Tokenization(made, data)
    problems = Problems()
    found: list[Tokens] = []
    shown: list[Shown] = []
    for number, tokens in examples([file], tokenize, seq_length, problems):
        found.append(tokens)
        if len(shown) < show:
            shown.append(_shown(number, tokens, made))
    if not found and not problems.counts:
        raise Refusal(f"{file} is empty", "Give a file with one example a line.")
    sequences = packed(found, True, seq_length, 0).num_sequences if found else 0
    read = sum(len(tokens.ids) - 1 for tokens in found)
    return Preview(
        file,
        seq_length,
        tuple(shown),
        tuple((reason, count, problems.first[reason][1]) for reason, count in problems.counts.most_common()),
        examples=len(found),
        tokens=read,
        learned=sum(int(tokens.answer[1:].sum()) for tokens in found),
        longest=max((len(tokens.ids) - 1 for tokens in found), default=0),
        sequences=sequences,
        filled=read / (sequences * seq_length) if sequences else 0.0,
    )


def _shown(line: int, tokens: Tokens, tokenizer: Any) -> Shown:
    changes = np.flatnonzero(np.diff(tokens.answer)) + 1
    parts = tuple(
        Part(tokenizer.decode(ids), bool(answer[0]))
        for ids, answer in zip(np.split(tokens.ids, changes), np.split(tokens.answer, changes), strict=True)
    )
    return Shown(line, parts, len(tokens.ids), int(tokens.answer[1:].sum()))
