"""The model of what trains, from NeMo's configuration of it."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

from slipway.configs import Layout, Model, Spec
from slipway.configs.schema.model import Activation, LoadBalancing
from slipway.recipes.build.model import ROPE_FACTORS, SAME_NAME, counted_together
from slipway.recipes.readback.parts import Parts, choice, kind_of, value

# Facts that NeMo's class brings and a recipe never sets: read where they differ from the class.
_OF_CLASS = ("gated_linear_unit", "normalization", "position_embedding_type", "softmax_type")
_ACTIVATIONS = {"silu": Activation.silu, "gelu": Activation.gelu, "squared_relu": Activation.squared_relu}


def read_model(parts: Parts, base: Spec, layout: Layout, gpus: int) -> Model:
    """The model of ``parts``; ``layout`` and ``gpus`` are those of ``parts``, by which the builder scales a loss."""
    config, model = parts.model, base.model
    changed: dict[str, Any] = {}
    for name in SAME_NAME:
        if (given := value(config, name)) is not None:
            changed[name] = _as(getattr(model, name), given)
    for name in ROPE_FACTORS:
        if (given := value(config, name)) is not None:
            changed["rope_scaling_factor"] = float(given)
    changed |= _positions_and_windows(config, model)
    vocabulary = value(config, "vocab_size") or value(parts.tokenizer, "vocab_size")
    if vocabulary and not value(parts.tokenizer, "pretrained_model_name"):
        changed["vocab_size"] = vocabulary
    longest, length = value(config, "max_position_embeddings"), value(config, "seq_length")
    if longest is not None and longest != max(model.max_position_embeddings, length):
        changed["max_position_embeddings"] = longest
    changed |= _experts(config, model)
    changed |= _of_class(config, model)
    found = replace(model, **changed)
    if found.is_moe:
        found = _with_balancing(found, value(config, "moe_aux_loss_coeff"), replace(base, layout=layout, gpus=gpus))
    return found


def _as(fact: Any, given: Any) -> Any:
    """``given`` in the type of the schema's ``fact``; a value of another kind stays, and the schema refuses it."""
    if isinstance(fact, LoadBalancing):
        return choice(LoadBalancing, given)
    if isinstance(fact, float) and isinstance(given, int):
        return float(given)
    return given


def _positions_and_windows(config: Any, model: Model) -> dict[str, Any]:
    """The bases of RoPE, and the keys that a query sees: Megatron-Core's window, and the query's own."""
    changed: dict[str, Any] = {}
    base = value(config, "rotary_base")
    if isinstance(base, list | tuple):
        changed["rotary_base_local"], base = map(float, base)
    if base is not None:
        changed["rotary_base"] = float(base)
    window = value(config, "window_size")
    if window is not None:
        changed["window_size"] = (window if isinstance(window, int) else window[0]) + 1
    elif model.window_size:
        changed["window_size"] = 0
    return changed


def _experts(config: Any, model: Model) -> dict[str, Any]:
    """The placement of experts over the layers, and multi-token prediction."""
    changed: dict[str, Any] = {"mtp_num_layers": value(config, "mtp_num_layers") or 0}
    if changed["mtp_num_layers"]:
        changed["mtp_loss_scaling_factor"] = value(config, "mtp_loss_scaling_factor")
    holds = value(config, "moe_layer_freq")
    if isinstance(holds, list) and holds != [int(model.layer_is_moe(layer)) for layer in range(model.num_layers)]:
        changed["num_dense_layers"] = holds.index(1) if 1 in holds else len(holds)
        changed["moe_every"] = 1
    return changed


def _of_class(config: Any, model: Model) -> dict[str, Any]:
    defaults = {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(kind_of(config))
    }
    changed = {
        name: type(getattr(model, name))(given)
        for name in _OF_CLASS
        if name in defaults and (given := value(config, name)) is not None and given != defaults[name]
    }
    function = value(config, "activation_func")
    if function is not defaults.get("activation_func") and (word := getattr(function, "__name__", "")) in _ACTIVATIONS:
        changed["activation_func"] = _ACTIVATIONS[word]
    return changed


def _with_balancing(model: Model, coefficient: float, spec: Spec) -> Model:
    """The model with the weight of its load-balancing loss, which the builder multiplies."""
    factor = counted_together(replace(spec, model=model))
    same = coefficient == spec.model.moe_aux_loss_coeff * factor
    return replace(model, moe_aux_loss_coeff=spec.model.moe_aux_loss_coeff if same else coefficient / factor)
