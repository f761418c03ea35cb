"""The data that a run reads, and what the data keys imply for each other.

``data.paths`` holds prefixes of .bin/.idx files, each optionally after its weight: ``[0.3,A,0.7,B]``. A mapping of
prefixes to weights, ``{A: 0.3, B: 0.7}``, means the same and becomes such a list, which is the form that Megatron-Core
reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slipway.configs.errors import Refusal
from slipway.configs.schema import Data, Run

PATH_KEYS = ("paths", "validation_paths", "test_paths")
"""The keys of ``data`` that hold a blend."""

MOCK, INDEXED, INSTRUCTIONS = "mock", "indexed", "instructions"
_EXAMPLE = "Write [A,B], [0.3,A,0.7,B] or {A: 0.3, B: 0.7}."


@dataclass(frozen=True)
class Source:
    """One prefix of a blend; ``weight`` is its share, None where the blend has no weights."""

    prefix: str
    weight: float | None


def flattened(value: Any, key: str) -> Any:
    """A mapping of prefixes to weights as a list of weights and prefixes; any other value as it is.

    Raises:
        Refusal: a weight that is no number.
    """
    if not isinstance(value, Mapping):
        return value
    for prefix, weight in value.items():
        if isinstance(weight, bool) or _number(str(weight)) is None:
            raise Refusal(f"{key}: {prefix} has the weight {weight}, which is not a number", _EXAMPLE)
    return [part for prefix, weight in value.items() for part in (weight, prefix)]


def sources(paths: Sequence[str], key: str = "data.paths") -> list[Source]:
    """The prefixes of a blend with their shares, which add up to 1.

    Raises:
        Refusal: weights without prefixes, prefixes without weights beside others that have one, or a weight that is
            not above 0.
    """
    numbers = [_number(text) for text in paths]
    if all(number is None for number in numbers):
        return [Source(path, None) for path in paths]
    weights = numbers[::2]
    complete = len(paths) % 2 == 0 and all(number is None for number in numbers[1::2])
    if not complete or not all(weight is not None and math.isfinite(weight) and weight > 0 for weight in weights):
        raise Refusal(
            f"{key}=[{','.join(paths)}] is not a blend: either no prefix or every prefix follows its weight, and a "
            "weight is above 0",
            _EXAMPLE,
        )
    total = sum(weight for weight in weights if weight is not None)
    return [Source(path, (weight or 0.0) / total) for weight, path in zip(weights, paths[1::2], strict=True)]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def prefixes(data: Data) -> list[str]:
    """Every prefix that a run reads: of training, validation, test and named validation sets, each once."""
    every = (source.prefix for key in PATH_KEYS for source in sources(getattr(data, key), f"data.{key}"))
    return list(dict.fromkeys([*every, *data.validation_sets.values()]))


def with_prefixes(data: Data, change: Callable[[str], str]) -> Data:
    """``data`` with ``change`` applied to each of its prefixes; weights stay as they were written."""

    def changed(paths: Sequence[str], key: str) -> list[str]:
        if any(source.weight is not None for source in sources(paths, key)):
            return [change(text) if i % 2 else text for i, text in enumerate(paths)]
        return [change(text) for text in paths]

    paths: dict[str, Any] = {key: changed(getattr(data, key), f"data.{key}") for key in PATH_KEYS}
    sets = {name: change(prefix) for name, prefix in data.validation_sets.items()}
    return replace(data, validation_sets=sets, **paths)


def require_consistent(data: Data, given: Mapping[str, str], *, finetunes: bool) -> None:
    """Require that the keys of ``data`` agree.

    Args:
        given: the user's overrides.
        finetunes: whether the task is one that reads instructions.

    Raises:
        Refusal: random tokens with paths, ``indexed`` without, or paths of a split that another key contradicts.
    """
    for key in PATH_KEYS:
        sources(getattr(data, key), f"data.{key}")
    with_paths = [f"data.{key}" for key in PATH_KEYS if getattr(data, key)]
    if data.kind == MOCK and with_paths:
        raise Refusal(
            f"data=mock trains on random tokens, and {with_paths[0]} names files",
            f"Leave out data=mock to train on the files, or {with_paths[0]} to train on random tokens.",
        )
    if data.kind == INDEXED and not data.paths:
        raise Refusal(
            "data=indexed needs data.paths, which is empty",
            "Prepare data with slipway data prepare, and set data.paths=[PREFIX].",
        )
    _require_sets(data)
    if data.kind == INSTRUCTIONS:
        _require_instructions(data, finetunes)
    if data.test_paths and not data.validation_paths:
        raise Refusal(
            "data.test_paths is given and data.validation_paths is not: NeMo reads either one blend, split by "
            "data.split, or files of each split",
            "Give data.validation_paths too.",
        )
    if data.validation_paths and "data.split" in given:
        raise Refusal(
            f"data.split={data.split} splits data.paths, and data.validation_paths names the validation set's own "
            "files, with which nothing is split",
            "Give one of them.",
        )


_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def _require_sets(data: Data) -> None:
    if data.validation_sets and data.kind != INDEXED:
        raise Refusal(
            f"data.validation_sets names files, and data={data.kind} does not train on files of that kind",
            "Give data.paths too, or leave data.validation_sets out.",
        )
    for name, prefix in data.validation_sets.items():
        if not _NAME.fullmatch(name) or not prefix:
            raise Refusal(
                f"data.validation_sets: {name}={prefix} is not a name and a prefix",
                "Write {web: PREFIX, code: PREFIX}; a name has letters, digits, dots, dashes and underscores.",
            )


def require_validated(data: Data, run: Run) -> None:
    """Refuse named validation sets of a run that does not validate."""
    if data.validation_sets and not (run.val_check_interval and run.limit_val_batches):
        raise Refusal(
            f"data.validation_sets is given, and run.val_check_interval={run.val_check_interval} with "
            f"run.limit_val_batches={run.limit_val_batches} means no validation",
            "Set both above 0, or leave data.validation_sets out.",
        )


def _require_instructions(data: Data, finetunes: bool) -> None:
    if not finetunes:
        raise Refusal("data=instructions is for finetuning, and task=pretrain reads text", "Use task=sft or task=lora.")
    if not data.paths:
        raise Refusal("data=instructions needs data.paths, which is empty", "Give data=FOLDER or data=FILE.jsonl.")
    if any(source.weight is not None for key in PATH_KEYS for source in sources(getattr(data, key))):
        raise Refusal("instructions are read whole, and data.paths gives them weights", "Leave the weights out.")
    if data.test_paths:
        raise Refusal("training reads no data.test_paths of instructions", "Leave them out.")
