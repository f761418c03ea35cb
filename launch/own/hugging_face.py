"""A config.json of a model that our recipes train, with every fact that decides what is computed."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from slipway.configs import Model, Refusal
from slipway.launch.weights.config import checked_config, model_of, read_config, recognise


class Trained(NamedTuple):
    """A model, and the families of ours whose recipes train its like."""

    model: Model
    families: tuple[str, ...]


def trained_model(path: Path, name: str, seq_length: int) -> Trained:
    """The model of a config.json, or of the folder that has one.

    Args:
        seq_length: tokens of a training sequence.

    Raises:
        Refusal: no recipe of ours trains such a model, or transformers is not installed.
    """
    if find_spec("transformers") is None:
        raise Refusal("the defaults of a config.json are in transformers, which is not installed", "Run make setup.")
    folder = path if path.is_dir() else path.parent
    held = {key: value for key, value in read_config(folder).items() if key != "quantization_config"}
    family = recognise(held, folder)
    model = model_of(family, checked_config(family, held, folder), name)
    return Trained(dataclasses.replace(model, seq_length=seq_length), family.trained_as)
