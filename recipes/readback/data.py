"""The data and the tokenizer of what trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slipway.configs import Data, Spec
from slipway.configs.schema.data import DataKind
from slipway.recipes.finetune.data import InstructionData, MockInstructions
from slipway.recipes.readback.parts import Parts, arguments_of, kind_of, value
from slipway.recipes.runtime.data import IndexedData, MockData, NullTokenizer
from slipway.recipes.runtime.data_validation import NamedValidation

_OF_INSTRUCTIONS = ("paths", "validation_paths", "split", "packed", "template", "chat_template", "too_long")


def read_data(parts: Parts, base: Spec) -> Data:
    """The data of ``parts``; a module that is not a recipe's leaves that of ``base``."""
    kind = kind_of(parts.data)
    changed: dict[str, Any] = {"tokenizer": _tokenizer(parts.tokenizer, base)}
    data = base.data
    if issubclass(kind, MockData):
        data = _of_kind(data, DataKind.mock)
    elif issubclass(kind, IndexedData):
        data = _of_kind(data, DataKind.indexed)
        changed |= _files(parts.data)
        named = next((each for each in parts.callbacks if kind_of(each) is NamedValidation), None)
        changed["validation_sets"] = dict(value(named, "sets", {}))
    elif issubclass(kind, MockInstructions):
        data = _of_kind(data, DataKind.mock)
        changed["packed"] = value(parts.data, "packed")
    elif issubclass(kind, InstructionData):
        data = _of_kind(data, DataKind.instructions)
        changed |= {name: value(parts.data, name) for name in _OF_INSTRUCTIONS}
    if not parts.cpu:
        changed["num_workers"] = value(parts.data, "num_workers")
    return replace(data, **changed)


def _tokenizer(tokenizer: Any, base: Spec) -> str:
    """The tokenizer's folder or name. One that does not keep it is the recipe's."""
    if issubclass(kind_of(tokenizer), NullTokenizer):
        return ""
    given = value(tokenizer, "pretrained_model_name")
    return str(given) if given else base.data.tokenizer


def _of_kind(data: Data, kind: DataKind) -> Data:
    """``data``, without the files and under the name of its kind if it is of another."""
    if data.kind is kind:
        return data
    return replace(data, name=kind.value, kind=kind, paths=[], validation_paths=[], test_paths=[], validation_sets={})


def _files(module: Any) -> dict[str, Any]:
    given = arguments_of(module)  # the built module turns paths into blends
    paths = value(given, "paths")
    if not isinstance(paths, dict):
        found: dict[str, Any] = {"paths": _texts(paths), "validation_paths": [], "test_paths": []}
        return found | {"split": value(given, "split")}
    validation, test = _texts(paths["validation"]), _texts(paths["test"])
    return {
        "paths": _texts(paths["train"]),
        "validation_paths": validation,
        "test_paths": [] if test == validation else test,
    }


def _texts(paths: Any) -> list[str]:
    return [str(path) for path in paths] if isinstance(paths, list | tuple) else [str(paths)]
