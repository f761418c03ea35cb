"""What a run trains on, in words: its files, their tokens, and how often the schedule reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slipway.configs import Refusal, Spec
from slipway.configs.blend import INSTRUCTIONS, prefixes, sources
from slipway.configs.schedule import batches_of
from slipway.launch.cli.quantities import in_tokens
from slipway.launch.data.blend import MANY_EPOCHS, readings, trained_tokens
from slipway.recipes.finetune.examples import files_of, lines_of
from slipway.recipes.runtime.data_check import tokenizer_ids, tokens_in

SMALL_TOKENIZER = 0.5  # of the model's vocabulary: with fewer ids, most of the embedding is never trained


@dataclass(frozen=True)
class TrainingData:
    """The data of a run: ``tokens`` of its training set, and the epochs of its most repeated source."""

    kind: str
    tokens: int | None
    """None for random tokens, and where the files are not on this machine."""
    needed: int
    """Tokens that the schedule reads."""
    epochs: float | None
    warnings: tuple[tuple[str, str], ...]
    """Each: what is wrong, and how it is fixed."""
    examples: int | None = None
    """Of instructions: lines of their files; None where the files are not on this machine, and of other data."""

    def describe(self) -> str:
        """The data in a few words: ``2.4 B tokens for a 5.033 T-token schedule: 2,097 epochs``."""
        schedule = f"a {in_tokens(self.needed)}-token schedule"
        if self.kind == "mock":
            return f"random tokens (data=mock) for {schedule}"
        if self.examples is not None:
            return f"{self.examples:,} examples for {schedule}"
        if self.tokens is None or self.epochs is None:
            return f"files that are not on this machine, for {schedule}"
        return (
            f"{in_tokens(self.tokens)} tokens for {schedule}: {self.epochs:,.{0 if self.epochs >= 10 else 2}f} epochs"
        )

    def as_json(self) -> dict[str, Any]:
        found = {"kind": self.kind, "tokens": self.tokens, "schedule_tokens": self.needed, "epochs": self.epochs}
        return found if self.examples is None else found | {"examples": self.examples}


def training_data(spec: Spec) -> TrainingData:
    """Read what there is of the run's data on this machine. Nothing that is missing or damaged is an error here."""
    needed = batches_of(spec).tokens_at(spec.run.max_steps)
    warnings = _tokenizer_warnings(spec)
    if spec.data.kind == "mock":
        return TrainingData("mock", None, needed, None, tuple(warnings))
    if spec.data.kind == INSTRUCTIONS:
        return _instructions(spec, needed, warnings)
    tokens = epochs = None
    try:
        tokens, epochs = _tokens_and_epochs(spec, needed)
        for prefix in prefixes(spec.data):
            tokens_in(prefix)
    except Refusal as refusal:
        warnings.append((refusal.message, refusal.fix))
    if epochs is not None and tokens is not None and epochs > MANY_EPOCHS:
        warnings.append(
            (
                f"the run reads its data {epochs:,.0f} times: {in_tokens(tokens)} tokens for a "
                f"{in_tokens(needed)}-token schedule",
                f"Give more data, or a shorter run: run.max_tokens={int(tokens * MANY_EPOCHS)} is "
                f"{MANY_EPOCHS:.0f} epochs.",
            )
        )
    return TrainingData("indexed", tokens, needed, epochs, tuple(warnings))


def _instructions(spec: Spec, needed: int, warnings: list[tuple[str, str]]) -> TrainingData:
    """The examples of a run; what they hold is looked at when it is launched."""
    count: int | None = None
    try:
        count = sum(1 for path in spec.data.paths for _ in lines_of(files_of(path)[0]))
    except Refusal as refusal:
        warnings = [*warnings, (refusal.message, refusal.fix)]
    return TrainingData("instructions", None, needed, None, tuple(warnings), examples=count)


def _tokens_and_epochs(spec: Spec, needed: int) -> tuple[int, float]:
    """Tokens of the training set, and the epochs of the source that is read most often."""
    blend = sources(spec.data.paths)
    trained = trained_tokens(blend, "1,0,0" if spec.data.validation_paths else spec.data.split)
    return int(sum(trained)), max(row.epochs for row in readings(blend, trained, needed))


def _tokenizer_warnings(spec: Spec) -> list[tuple[str, str]]:
    folder, vocabulary = spec.data.tokenizer, spec.model.vocab_size
    if not folder:
        return []
    try:
        ids = tokenizer_ids(folder)
    except Refusal as refusal:
        return [(refusal.message, refusal.fix)]
    if SMALL_TOKENIZER * vocabulary <= ids <= vocabulary:
        return []
    why = "most of the embedding is never trained" if ids < vocabulary else "the run would be refused"
    return [
        (
            f"the tokenizer {folder} has {ids:,} ids and {spec.name} has an embedding of {vocabulary:,}: {why}",
            f"Use the model's own tokenizer, or set model.vocab_size={ids}.",
        )
    ]
