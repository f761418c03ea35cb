"""The user's ``key=value`` overrides: which keys there are, and what a value means in Hydra's grammar.

Plain words and numbers, which most values are, are read here. Quotes, lists and mappings go to Hydra's own parser,
whose import is slow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from slipway.configs.convert import leaves
from slipway.configs.errors import Refusal, nearest
from slipway.configs.files import GROUPS, choices, site_file
from slipway.configs.schema import Spec

NODES = "nodes"
"""Another way to give ``gpus``: nodes times the GPUs per node."""

_OF_LAYOUT = "tp pp vpp cp ep etp fsdp sp mbs gbs seq_length recompute".split()
SHORT_NAMES = {"tokens": "run.max_tokens", "price": "cluster.price", "num_nodes": NODES}
SHORT_NAMES |= {name: f"layout.{name}" for name in _OF_LAYOUT}
SHORT_NAMES |= {"lr": "optim.lr", "max_steps": "run.max_steps", "seed": "run.seed", "dir": "run.dir"}
"""Keys that are asked for often, and what they stand for."""

_FSDP_SWITCH = {"true": "megatron", "1": "megatron", "false": "none", "0": "none"}
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_/-]*")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)")
_WORDS_WITH_A_VALUE: dict[str, Any] = {"true": True, "false": False, "null": None}
_NUMBER_WORDS = ("nan", "inf")


def given_overrides(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides as a mapping of keys to the text of their values; of two for one key, the last counts.

    Raises:
        Refusal: not ``key=value``, an unknown key, or an unknown choice of a group.
    """
    given: dict[str, str] = {}
    for override in overrides:
        key, text = _written_out(*_split(override))
        if key in GROUPS:
            if text not in choices(key) and not (key == "cluster" and site_file(text)):
                raise Refusal(f"unknown {key} {text!r}; {nearest(text, choices(key))}")
        elif key != NODES and not _is_key(key):
            raise Refusal(f"unknown key {key!r}; {nearest(key, [*leaves(Spec), *GROUPS, NODES, *SHORT_NAMES])}")
        given[key] = text
    return given


def _split(override: str) -> tuple[str, str]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise Refusal(f"{override!r} is not an override", "Write key=value, for example layout.tp=4.")
    key = key.lstrip("+")
    key = SHORT_NAMES.get(key, key)
    if key == "layout.fsdp":
        text = _FSDP_SWITCH.get(text.lower(), text)
    return key, text


_ADAPTERS = {"lora": "lora", "dora": "dora", "none": "sft"}  # what peft= names -> the task


def _written_out(key: str, text: str) -> tuple[str, str]:
    """The key and value that a short form stands for: ``base=FOLDER``, ``data=FOLDER`` and ``peft=lora``.

    Raises:
        Refusal: an unknown adapter.
    """
    if key == "base":
        return "run.base", text
    if key == "data" and text not in choices("data") and ("/" in text or os.path.exists(text)):
        return "data.paths", text if text.startswith("[") else f"['{text}']"
    if key == "peft":
        if text not in _ADAPTERS:
            raise Refusal(f"unknown peft {text!r}; {nearest(text, _ADAPTERS)}")
        return "task", _ADAPTERS[text]
    return key, text


def _is_key(key: str) -> bool:
    keys = leaves(Spec)
    parent = key.rpartition(".")[0]
    return key in keys or (parent in keys and keys[parent].kind == dict[str, str])


def value_of(key: str, text: str) -> Any:
    """The value that the text of an override means: a number, a truth value, None, text, a list or a mapping.

    Raises:
        Refusal: the text is not in Hydra's grammar, gives several values, or refers to another value.
    """
    if key == "layout.pipeline_layout":
        return text.strip("'\"")  # its characters mean something else in Hydra's grammar
    lower = text.lower()
    if lower in _WORDS_WITH_A_VALUE:
        return _WORDS_WITH_A_VALUE[lower]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text):
        return float(text)
    if not text or (_WORD.fullmatch(text) and lower not in _NUMBER_WORDS):
        return text
    return _value_by_hydra(key, text)


def text_of(value: Any) -> str:
    """The text that :func:`value_of` reads as ``value``: what stands behind ``key=``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, list):
        return f"[{','.join(map(text_of, value))}]"
    return str(value)


def _value_by_hydra(key: str, text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(f"++{key}={text}")
        several = parsed.is_sweep_override()
        value = None if several else parsed.value()
    except (HydraException, ValueError, RecursionError):
        fix = "Close every bracket, brace and quote, and put text with other characters in quotes."
        raise Refusal(f"the override {key}={text} could not be read", fix) from None
    if several:
        raise Refusal(
            f"{key}={text} gives several values, and a recipe takes one", f"For a list, write {key}=[{text}]."
        )
    return value


def refuse_interpolation(key: str, value: Any) -> None:
    """Refuse ``${...}``: values are taken as they are written, and none refers to another or to the environment.

    Raises:
        Refusal: text that holds ``${``.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            refuse_interpolation(f"{key}.{name}", item)
    elif isinstance(value, list):
        for item in value:
            refuse_interpolation(key, item)
    elif isinstance(value, str) and "${" in value:
        raise Refusal(
            f"{key}={value} refers to another value with ${{...}}, which is not supported", "Write the value itself."
        )
