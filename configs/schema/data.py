"""Where training tokens come from."""

from __future__ import annotations

from dataclasses import dataclass, field

from slipway.configs.schema.legal import Choice, Count


class DataKind(Choice):
    """``mock`` generates random tokens; ``indexed`` reads Megatron .bin/.idx files."""

    mock = "mock"
    indexed = "indexed"


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where training tokens come from."""

    name: str
    """Name of the file in configs/data."""

    kind: DataKind = DataKind.mock
    """Random tokens, or files that ``slipway data prepare`` wrote."""

    paths: list[str] = field(default_factory=list)
    """Prefixes of .bin/.idx pairs: [A,B], or with weights [0.3,A,0.7,B] or {A: 0.3, B: 0.7}. Paths imply indexed data.

    Where ``validation_paths`` is empty, ``split`` divides these files into training, validation and test.
    """

    validation_paths: list[str] = field(default_factory=list)
    """Files of the validation set, in the form of ``paths``, which then holds the training set only."""

    test_paths: list[str] = field(default_factory=list)
    """Files of the test set, in the form of ``paths``; training does not read them."""

    tokenizer: str = ""
    """A folder or name that Hugging Face tokenizers load; empty: NeMo's null tokenizer."""

    split: str = "900,50,50"
    """Shares of the training, validation and test sets."""

    num_workers: Count = 2
    """Processes per rank that read data."""
