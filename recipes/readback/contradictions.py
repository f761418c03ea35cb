"""Places of a recipe that hold the same value: NeMo's merges take one of two that differ, without a word."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import fiddle as fdl
import torch

from slipway.configs import Refusal
from slipway.recipes.readback.parts import Parts, kind_of, value

# Arguments of the strategy that NeMo writes over those of the model's configuration.
_WRITTEN_BY_STRATEGY = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "sequence_parallel",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
)
_DERIVED = "expert_tensor_parallel_size"  # a configuration that is built takes TP where it has none
_WRITTEN_BY_PLUGIN = ("fp8", "first_last_layers_bf16")  # over the model's, likewise


def require_one_value(parts: Parts) -> None:
    """Require that all places of a value hold the same.

    Raises:
        Refusal: the first two that differ.
    """
    for (first, a), (second, b) in _pairs(parts):
        if a != b:
            raise Refusal(f"{first}={a} and {second}={b} contradict each other", "Give both the same value.")


Place = tuple[str, Any]


def _pairs(parts: Parts) -> Iterator[tuple[Place, Place]]:
    model, strategy, ddp, plugin, optim = parts.model, parts.strategy, parts.ddp, parts.plugin, parts.optim
    yield ("model.config.seq_length", value(model, "seq_length")), ("data.seq_length", value(parts.data, "seq_length"))
    name = "use_distributed_optimizer"
    yield (f"optim.config.{name}", value(optim, name)), (f"trainer.strategy.ddp.{name}", value(ddp, name))
    name = "grad_reduce_in_fp32"
    yield (f"trainer.plugins.{name}", value(plugin, name)), (f"trainer.strategy.ddp.{name}", value(ddp, name))
    half = str(value(plugin, "precision")).startswith("bf16")
    yield ("optim.config.bf16", bool(value(optim, "bf16"))), (f"trainer.plugins.precision={_word(plugin)}, bf16", half)
    types = {True: torch.bfloat16, False: torch.float32}
    yield (
        ("trainer.plugins.params_dtype", value(plugin, "params_dtype")),
        (f"trainer.plugins.precision={_word(plugin)}, whose type", types[half]),
    )
    name = "use_te_rng_tracker"
    yield (f"model.config.{name}", bool(value(model, name))), (f"trainer.strategy.{name}", bool(value(strategy, name)))
    name = "pipeline_model_parallel_layout"
    if written := value(model, name):  # a configuration that is built has an object, whose text is what it was given
        yield (f"model.config.{name}", str(written)), (f"trainer.strategy.{name}", str(value(strategy, name)))
    yield from _overwritten(model, "trainer.strategy", strategy, _WRITTEN_BY_STRATEGY)
    yield from _overwritten(model, "trainer.plugins", plugin, _WRITTEN_BY_PLUGIN)


def _word(plugin: Any) -> str:
    return str(value(plugin, "precision"))


def _overwritten(model: Any, where: str, winner: Any, names: tuple[str, ...]) -> Iterator[tuple[Place, Place]]:
    """What is set in the model's configuration and written over: at its default it is not set."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind_of(model))}
    for name in names:
        if name == _DERIVED and not isinstance(model, fdl.Buildable):
            continue
        given = value(model, name)
        if name in defaults and given != defaults[name]:
            yield (f"model.config.{name}", given), (f"{where}.{name}", value(winner, name))
