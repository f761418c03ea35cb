"""Imported weights are the same model: Megatron-Core's logits are transformers', and an export returns every byte."""

from __future__ import annotations

import filecmp
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slipway.configs import Spec, load
from slipway.configs.record import model_from_record
from tests.weights.tiny import TINY, logits_of_transformers, make

LARGEST_DIFFERENCE = 5e-6  # of fp32 logits with a standard deviation of about 1
TOKENS = (2, 48)


def _spec(recipe: str, base: Path) -> Spec:
    """The recipe with the imported model, on one CPU rank."""
    import json

    from slipway.launch.rehearsal.shrink import shrink, single_process

    toy = single_process(shrink(load(recipe, []).spec))
    model = model_from_record(json.loads((base / "slipway/base.json").read_text())["model"])
    known = replace(model, **{fact: getattr(toy.model, fact) for fact in ("name", "nemo_config", "family")})
    if model.is_moe:
        known = replace(known, moe_router_load_balancing_type=toy.model.moe_router_load_balancing_type)
    return replace(toy, model=known)


def _logits_of_megatron(spec: Spec, base: Path, tokens: Any) -> Any:
    import torch
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from slipway.recipes.build import build
    from slipway.recipes.runtime.merged import merge
    from tests.megatron import _Tokenizer

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    config: Any = merge(build(spec, cpu=True)).model
    model = config.configure_model(_Tokenizer(spec.model.vocab_size))
    state = model.sharded_state_dict(prefix="module.", metadata={"singleton_local_shards": False})
    loaded = dist_checkpointing.load({"state_dict": state}, str(base / "weights"))["state_dict"]
    model.load_state_dict({key.removeprefix("module."): value for key, value in loaded.items()})
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with torch.no_grad():
        return model.eval()(tokens, positions, None).float()[..., : spec.model.vocab_size]


@pytest.mark.nemo
@pytest.mark.parametrize("name", sorted(TINY))
def test_logits_are_those_of_transformers(name: str, tmp_path: Path, in_child: Any) -> None:
    from slipway.launch.weights.from_hugging_face import import_weights

    make(name, tmp_path / "hf")
    done = import_weights(tmp_path / "hf", tmp_path / "base")
    assert done.family == TINY[name].family
    spec = _spec(TINY[name].recipe, tmp_path / "base")

    def difference() -> tuple[float, float]:
        import torch

        torch.manual_seed(1)
        tokens = torch.randint(0, spec.model.vocab_size, TOKENS)
        theirs = logits_of_transformers(tmp_path / "hf", tokens)
        ours = _logits_of_megatron(spec, tmp_path / "base", tokens)
        return float((ours - theirs).abs().max()), float(theirs.std())

    largest, deviation = in_child(difference)
    assert deviation > 0.1, "a model that answers the same everywhere proves nothing"
    assert largest <= LARGEST_DIFFERENCE, largest


@pytest.mark.parametrize("name", sorted(TINY))
def test_an_export_of_an_import_is_the_folder_byte_for_byte(name: str, tmp_path: Path) -> None:
    """The weights, in shards as transformers makes them, and every other file."""
    from slipway.launch.weights.from_hugging_face import import_weights
    from slipway.launch.weights.to_hugging_face import export_weights

    make(name, tmp_path / "hf")
    came = import_weights(tmp_path / "hf", tmp_path / "base")
    went = export_weights(tmp_path / "base", tmp_path / "back")
    assert (came.family, came.tensors, came.bytes) == (went.family, went.tensors, went.bytes)
    files = sorted(file.name for file in (tmp_path / "hf").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "back").iterdir())
    same, different, unread = filecmp.cmpfiles(tmp_path / "hf", tmp_path / "back", files, shallow=False)
    assert (sorted(same), different, unread) == (files, [], [])
