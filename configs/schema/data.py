"""Where training tokens come from."""

from __future__ import annotations

from dataclasses import dataclass, field

from slipway.configs.schema.legal import Choice, Count


class DataKind(Choice):
    """``mock`` generates random tokens; ``indexed`` reads Megatron .bin/.idx files; ``instructions`` reads prompts and
    answers from .jsonl files.
    """

    mock = "mock"
    indexed = "indexed"
    instructions = "instructions"


class Template(Choice):
    """How an example becomes text: by the tokenizer's chat template, or as it stands. ``auto``: conversations and
    instructions by the template, where there is one; prompts with their completions as they stand.
    """

    auto = "auto"
    chat = "chat"
    plain = "plain"


class TooLong(Choice):
    """What becomes of an example that is longer than ``layout.seq_length``: the run is refused, or it is left out."""

    refuse = "refuse"
    drop = "drop"


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where training tokens come from."""

    name: str
    """Name of the file in configs/data."""

    kind: DataKind = DataKind.mock
    """Random tokens, files that ``slipway data prepare`` wrote, or instructions."""

    paths: list[str] = field(default_factory=list)
    """Prefixes of .bin/.idx pairs: [A,B], or with weights [0.3,A,0.7,B] or {A: 0.3, B: 0.7}. Paths imply indexed data.

    Where ``validation_paths`` is empty, ``split`` divides these files into training, validation and test. Instructions
    are .jsonl files, or folders with training.jsonl and perhaps validation.jsonl.
    """

    validation_paths: list[str] = field(default_factory=list)
    """Files of the validation set, in the form of ``paths``, which then holds the training set only."""

    test_paths: list[str] = field(default_factory=list)
    """Files of the test set, in the form of ``paths``; training does not read them."""

    validation_sets: dict[str, str] = field(default_factory=dict)
    """More validation sets, each a name and one prefix: {web: A, code: B}. Every validation also reads them, and logs
    the loss of each as ``val_loss/NAME``.
    """

    tokenizer: str = ""
    """A folder or name that Hugging Face tokenizers load; empty: NeMo's null tokenizer, or of instructions that of
    ``run.base``.
    """

    split: str = "900,50,50"
    """Shares of the training, validation and test sets."""

    num_workers: Count = 2
    """Processes per rank that read data."""

    packed: bool = True
    """Of instructions: whether several share one sequence, none attending to another; else each is padded."""

    template: Template = Template.auto
    """Of instructions: how an example becomes text."""

    chat_template: str = ""
    """A file with a chat template (Jinja) in place of the tokenizer's."""

    too_long: TooLong = TooLong.refuse
    """Of instructions: what becomes of those that do not fit into a sequence."""
