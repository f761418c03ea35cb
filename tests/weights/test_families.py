"""Imported weights are the same model: Megatron-Core's logits are transformers', and an export returns every byte."""

from __future__ import annotations

import filecmp
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slipway.configs import Spec, load
from slipway.configs.record import model_from_record
from slipway.launch.weights.family import TRAINING
from tests.weights.tiny import TINY, logits_of_transformers, make

LARGEST_DIFFERENCE = 5e-6  # of fp32 logits with a standard deviation of about 1
TOKENS = (2, 48)


def _spec(recipe: str, base: Path) -> Spec:
    """The recipe with the imported model, on one CPU rank."""
    import json

    from slipway.launch.rehearsal.shrink import shrink, single_process

    toy = single_process(shrink(load(recipe, []).spec))
    model = model_from_record(json.loads((base / "slipway/base.json").read_text())["model"])
    return replace(toy, model=replace(model, **{fact: getattr(toy.model, fact) for fact in TRAINING}))


def _megatron(spec: Spec, base: Path) -> Any:
    """Megatron-Core's model with the weights of ``base``, each of which it must find there."""
    import fiddle as fdl
    import torch
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from slipway.recipes.build import build
    from slipway.recipes.runtime.merged import merge
    from tests.megatron import _Tokenizer

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    recipe = build(spec, cpu=True)
    module: Any = fdl.build(recipe.model)
    module.config, module.tokenizer = merge(recipe).model, _Tokenizer(spec.model.vocab_size)
    module.configure_model()
    model = module.module
    state = model.sharded_state_dict(prefix="module.", metadata={"singleton_local_shards": False})
    loaded = dist_checkpointing.load({"state_dict": state}, str(base / "weights"))["state_dict"]
    model.load_state_dict({key.removeprefix("module."): value for key, value in loaded.items()})
    return model.eval()


def _logits_of_megatron(spec: Spec, base: Path, tokens: Any) -> Any:
    import torch

    model = _megatron(spec, base)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with torch.no_grad():
        return model(tokens, positions, None).float()[..., : spec.model.vocab_size]


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
    assert came.checksum == went.checksum, "of the same tensors"
    files = sorted(file.name for file in (tmp_path / "hf").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "back").iterdir())
    same, different, unread = filecmp.cmpfiles(tmp_path / "hf", tmp_path / "back", files, shallow=False)
    assert (sorted(same), different, unread) == (files, [], [])


def _with_prediction(folder: Path) -> None:
    """Add a layer for multi-token prediction to a saved DeepSeek-V3, as DeepSeek's own files have it."""
    import json

    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    layer = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.2.")}
    added = {name.replace(".2.", ".3.", 1): torch.randn_like(tensor) for name, tensor in layer.items()}
    hidden = tensors["model.norm.weight"]
    added |= {
        f"model.layers.3.{name}.weight": torch.randn_like(hidden) for name in ("enorm", "hnorm", "shared_head.norm")
    }
    added["model.layers.3.eh_proj.weight"] = torch.randn(len(hidden), 2 * len(hidden))
    added["model.layers.3.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    added["model.layers.3.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors | added, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))


@pytest.mark.nemo
def test_layers_for_multi_token_prediction_come_and_go(tmp_path: Path, in_child: Any) -> None:
    """transformers has none to compare with: Megatron-Core loads every tensor, and an export returns every byte."""
    from slipway.launch.weights.from_hugging_face import import_weights
    from slipway.launch.weights.to_hugging_face import export_weights

    make("deepseek_v3", tmp_path / "hf")
    _with_prediction(tmp_path / "hf")
    came = import_weights(tmp_path / "hf", tmp_path / "base")
    assert export_weights(tmp_path / "base", tmp_path / "back").tensors == came.tensors
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (tmp_path / "back" / name).read_bytes()
    spec = _spec("deepseek_v3", tmp_path / "base")
    assert spec.model.mtp_num_layers == 1

    def loaded() -> bool:
        import torch
        from safetensors.torch import load_file

        ours = _megatron(spec, tmp_path / "base").mtp.layers[0].eh_proj.weight
        return torch.equal(ours, load_file(tmp_path / "hf/model.safetensors")["model.layers.3.eh_proj.weight"])

    assert in_child(loaded)
