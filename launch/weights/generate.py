"""``slipway generate``: what a run's newest checkpoint answers, through transformers and its exported weights."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slipway.configs import Data, Refusal
from slipway.launch.weights.config import CONFIG
from slipway.launch.weights.to_hugging_face import data_of_run, export_weights
from slipway.recipes.finetune.examples import Example, Turn, Unusable, lines_of, read_example
from slipway.recipes.finetune.template import Tokenization, load_tokenizer

AT_ONCE = 32  # prompts of one batch


@dataclass(frozen=True)
class Answered:
    """One prompt: as it was given, the model's answer, and the one of the file, if it came from a file."""

    prompt: str
    answer: str
    expected: str | None = None

    @property
    def exact(self) -> bool:
        """Whether the answer is that of the file, but for space around it."""
        return self.expected is not None and self.answer.strip() == self.expected.strip()


@dataclass(frozen=True)
class Generated:
    """The answers to all prompts."""

    answers: tuple[Answered, ...]
    tokens: int
    seconds: float


def generate(source: Path, prompts: list[str], examples: Path | None, max_tokens: int, raw: bool) -> Generated:
    """Answer prompts, greedily.

    Args:
        source: a run, imported weights, or a folder of Hugging Face's.
        prompts: what users say.
        examples: a file of instructions, whose prompts are answered too.
        max_tokens: of an answer.
        raw: continue the prompts as they stand, without a chat template.

    Raises:
        Refusal: no weights, no tokenizer, or a line that is no example.
    """
    asked = [Example((Turn("user", prompt), Turn("assistant", "")), converses=not raw) for prompt in prompts]
    expected: list[str | None] = [None] * len(asked)
    for example in _read(examples) if examples else []:
        asked.append(example)
        expected.append(example.turns[-1].text)
    if (source / CONFIG).is_file():
        return _answer(source, Data(name="instructions"), asked, expected, max_tokens)
    with tempfile.TemporaryDirectory(prefix="slipway-generate-") as folder:
        out = Path(folder) / "weights"
        export_weights(source, out)
        return _answer(out, data_of_run(source), asked, expected, max_tokens)


def _read(path: Path) -> list[Example]:
    if not path.is_file():
        raise Refusal(f"there is no file {path}", "Give a .jsonl file with instructions.")
    found = []
    for number, line in lines_of(path):
        try:
            found.append(read_example(line))
        except Unusable as why:
            raise Refusal(f"line {number} of {path} {why}", "See slipway data preview.") from None
    return found


def _answer(folder: Path, data: Data, asked: list[Example], expected: list[str | None], max_tokens: int) -> Generated:
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(str(folder))
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenize = Tokenization(tokenizer, dataclasses.replace(data, name="instructions"))
    start = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    if torch.cuda.is_available():
        model = model.cuda()
    answers: list[Answered] = []
    tokens = 0
    for first in range(0, len(asked), AT_ONCE):
        batch = asked[first : first + AT_ONCE]
        for example, made in zip(batch, _continued(model, tokenize, batch, max_tokens), strict=True):
            tokens += len(made)
            answers.append(
                Answered(
                    example.turns[-2].text,
                    tokenizer.decode(made, skip_special_tokens=True),
                    expected[len(answers)],
                )
            )
    return Generated(tuple(answers), tokens, time.monotonic() - start)


def _continued(model: Any, tokenize: Tokenization, batch: list[Example], max_tokens: int) -> list[list[int]]:
    """The tokens that a model adds to each prompt, up to the end of its text."""
    tokenizer = tokenize.tokenizer
    templated = tokenize.by_template(batch[0]) and bool(tokenize.chat_template)
    try:
        texts = [tokenize.prompt(example) for example in batch]
    except Unusable as why:
        raise Refusal(f"a prompt {why}", "Use --raw to continue it as it stands.") from None
    given = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not templated).to(model.device)
    given.pop("token_type_ids", None)
    ends = {tokenizer.eos_token_id, *_as_list(model.generation_config.eos_token_id)} - {None}
    with torch.no_grad():
        out = model.generate(
            **given,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=sorted(ends) or None,
            pad_token_id=tokenizer.pad_token_id,
        )
    found = []
    for row in out[:, given["input_ids"].shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), len(row))
        found.append(row[:end])
    return found


def _as_list(ids: Any) -> list[int]:
    return [ids] if isinstance(ids, int) else list(ids or [])
