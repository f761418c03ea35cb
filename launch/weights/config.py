"""A folder's config.json as facts of a model, and a model's facts as transformers' configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slipway.configs import Model, Refusal
from slipway.configs.convert import convert
from slipway.launch.weights.family import Family, families
from slipway.launch.weights.refused import REFUSED

CONFIG = "config.json"


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        Refusal: there is no folder, or no config.json that is one.
    """
    if not folder.is_dir():
        raise Refusal(f"there is no folder {folder}", "Give a folder that a Hugging Face model was downloaded to.")
    path = folder / CONFIG
    if not path.is_file():
        raise Refusal(f"{folder} has no {CONFIG}", "Give a folder that a Hugging Face model was downloaded to.")
    try:
        held = json.loads(path.read_text())
    except (ValueError, RecursionError):
        held = None
    if not isinstance(held, dict):
        raise Refusal(f"{path} is not a JSON object", "Download it again.")
    return held


def recognise(held: dict[str, Any], folder: Path) -> Family:
    """The family of a config.json, by the class that it names.

    Raises:
        Refusal: none that is known here, or weights that are quantized.
    """
    named = held.get("architectures") or []
    for family in families():
        if family.architecture in named:
            break
    else:
        for name in named:
            if name in REFUSED:
                raise Refusal(f"{folder / CONFIG} holds a {name}, which is not imported: {REFUSED[name]}")
        known = ", ".join(sorted(family.architecture for family in families()))
        what = f"holds a {named[0]}" if named else "names no architecture"
        raise Refusal(f"{folder / CONFIG} {what}, which cannot be imported", f"These can: {known}.")
    if held.get("quantization_config"):
        method = held["quantization_config"].get("quant_method", "another format")
        raise Refusal(f"{folder} has weights quantized to {method}", "Give the bf16 weights of the model.")
    return family


def checked_config(family: Family, held: dict[str, Any], folder: Path) -> Any:
    """transformers' configuration, which fills in the keys that a config.json leaves to their defaults.

    Raises:
        Refusal: transformers cannot read it, or a key has a value that nothing here computes.
    """
    from transformers import CONFIG_MAPPING

    try:
        config = CONFIG_MAPPING[family.model_type].from_dict(held)
    except (KeyError, ValueError, TypeError) as error:
        raise Refusal(f"transformers cannot read {folder / CONFIG}: {error}", "Download it again.") from None
    for key, legal in family.constants.items():
        value = getattr(config, key, legal)
        if value != legal:
            raise Refusal(
                f"{folder / CONFIG} has {key}={json.dumps(value)}, and {family.name} is trained here with "
                f"{json.dumps(legal)} only"
            )
    return config


def model_of(family: Family, config: Any, name: str = "imported") -> Model:
    """The facts of a model from transformers' configuration.

    Raises:
        Refusal: a value that is not legal.
    """
    facts: dict[str, Any] = {fact: getattr(config, key) for fact, key in family.sizes.items()}
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    facts |= {"kv_channels": width} | family.facts | family.read(config)
    facts["seq_length"] = facts["max_position_embeddings"]
    facts |= {"name": name, "family": family.trained_as[0] if family.trained_as else family.name}
    facts = {key: value for key, value in facts.items() if value is not None}
    return convert(Model, facts, f"{name}: ")


def config_of(family: Family, model: Model, **more: Any) -> Any:
    """transformers' configuration of a model.

    Args:
        more: further keys, such as the ids of special tokens.
    """
    from transformers import CONFIG_MAPPING

    keys = {key: getattr(model, fact) for fact, key in family.sizes.items()}
    made = CONFIG_MAPPING[family.model_type](**(keys | family.constants | family.write(model) | more))
    made.architectures = [family.architecture]
    return made
