"""Whether instructions can be trained on, checked before a run starts. Imports neither torch nor NeMo."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slipway.configs import Refusal, Spec
from slipway.configs.schema import TooLong
from slipway.recipes.finetune.examples import files_of
from slipway.recipes.finetune.template import Tokenization, load_tokenizer
from slipway.recipes.finetune.tokenized import TOO_LONG, Problems, examples

LOOKED_AT = 20_000  # lines of each file before the run; the run itself looks at all


def check_instructions(spec: Spec) -> None:
    """Refuse instructions that no run could learn from.

    Raises:
        Refusal: a file or a tokenizer that is missing, a line that is no example, or one that is too long.
    """
    data = spec.data
    training = [files_of(path) for path in data.paths]
    given = [files_of(path)[0] for path in data.validation_paths]
    validation = given or [beside for _, beside in training if beside]
    held_out = float(data.split.split(",")[1]) > 0
    if spec.run.val_check_interval and not validation and not held_out:
        raise Refusal(
            f"run.val_check_interval={spec.run.val_check_interval}, and there is no validation set",
            "Put a validation.jsonl beside training.jsonl, give data.validation_paths, or hold a part of the examples "
            "out with data.split='95,5,0'.",
        )
    tokenize = Tokenization(load_tokenizer(data.tokenizer), data)
    problems, largest, count = Problems(), 0, 0
    paths: list[Path] = [path for path, _ in training] + validation
    for _, tokens in examples(paths, tokenize, spec.seq_length, problems, LOOKED_AT):
        largest, count = max(largest, int(np.max(tokens.ids))), count + 1
    problems.refuse([TOO_LONG] if data.too_long is TooLong.drop else [])
    if not count:
        raise Refusal(f"{paths[0]} holds no examples", "Give a file with at least one.")
    if largest >= spec.model.vocab_size:
        raise Refusal(
            f"the tokenizer {data.tokenizer} makes the id {largest}, and {spec.name} has an embedding of "
            f"{spec.model.vocab_size}",
            "Use the base's own tokenizer.",
        )
