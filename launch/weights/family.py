"""A family of Hugging Face models: its config.json as facts of a model and back, and the table of its tensors."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from slipway import configs
from slipway.configs import Model, Refusal
from slipway.configs.schema import RopeScaling
from slipway.launch.weights.rules import Rule

# Facts of a model that say how it is trained, not what it computes.
TRAINING = frozenset(
    "name family nemo_config source seq_length init_method_std make_vocab_size_divisible_by pad_vocab "
    "moe_router_load_balancing_type moe_aux_loss_coeff moe_router_bias_update_rate mtp_loss_scaling_factor".split()
)


def _usually_ignored(name: str, model: Model) -> bool:
    """Rotary frequencies, which old versions saved, and an output layer that is the embedding."""
    return name.endswith(".rotary_emb.inv_freq") or (model.tied and name == "lm_head.weight")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One class of transformers. A module of ``families`` lists its own as ``FAMILIES``.

    Attributes:
        name: as messages and ``--json`` call it.
        architecture: transformers' class, as config.json names it.
        model_type: transformers' name of its configuration.
        trained_as: ``family`` of the models in configs/model whose runs it exports.
        sizes: fact -> key of config.json.
        facts: what all its models have in common: fact -> value.
        constants: key of config.json -> the only value that is computed here.
        rules: the table of a model.
        read: further facts, from transformers' configuration.
        write: further keys of config.json, from a model.
        adjust: the facts of a model that depend on which tensors a folder has.
        ignored: whether a tensor of the folder is one that transformers does not load.
    """

    name: str
    architecture: str
    model_type: str
    trained_as: tuple[str, ...]
    sizes: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    rules: Callable[[Model], list[Rule]]
    read: Callable[[Any], dict[str, Any]] = lambda config: {}
    write: Callable[[Model], dict[str, Any]] = lambda model: {}
    adjust: Callable[[Model, Iterable[str]], Model] = lambda model, names: model
    ignored: Callable[[str, Model], bool] = _usually_ignored


@cache
def families() -> tuple[Family, ...]:
    """Every family, found by its module's name."""
    from slipway.launch.weights import families as package

    found: list[Family] = []
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        found += getattr(importlib.import_module(f"{package.__name__}.{module.name}"), "FAMILIES", ())
    return tuple(found)


def differences(ours: Model, theirs: Model) -> list[str]:
    """The facts in which two models compute something else."""
    a, b = _normal(ours), _normal(theirs)
    names = [f.name for f in dataclasses.fields(Model) if f.name not in TRAINING]
    return [name for name in names if getattr(a, name) != getattr(b, name)]


def recipes_of(model: Model) -> list[str]:
    """The recipes that train a model of these facts, whatever the longest sequence is that it was trained on."""
    found = []
    for name in configs.recipe_names():
        theirs = configs.headline(name)[0]
        if set(differences(model, theirs)) <= {"max_position_embeddings"}:
            found.append(name)
    return found


def _normal(model: Model) -> Model:
    """A model whose facts that mean nothing to it have one value."""
    if model.rope_scaling_factor == 1:
        model = dataclasses.replace(model, rope_scaling=RopeScaling.none, rope_scaling_factor=0.0)
    if model.is_mla:
        model = dataclasses.replace(model, kv_channels=1)
    if model.is_moe and not model.has_dense_layers:
        model = dataclasses.replace(model, ffn_hidden_size=1)
    return model


def family_of(model: Model) -> Family:
    """The family that can hold a run's model.

    Raises:
        Refusal: there is none, or transformers' class has no place for a fact of the model.
    """
    from slipway.launch.weights.config import config_of, model_of

    candidates = [family for family in families() if model.family in family.trained_as]
    if not candidates:
        raise Refusal(
            f"{model.name} is of the family {model.family}, which cannot be written for Hugging Face here",
            f"These can: {', '.join(sorted({name for family in families() for name in family.trained_as}))}.",
        )
    odd = {family.name: differences(model, model_of(family, config_of(family, model))) for family in candidates}
    best = min(candidates, key=lambda family: len(odd[family.name]))
    if odd[best.name]:
        name = odd[best.name][0]
        value = getattr(getattr(model, name), "value", getattr(model, name))
        raise Refusal(f"transformers' {best.architecture} has no {name}={value}, which {model.name} was trained with")
    return best
