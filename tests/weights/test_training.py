"""From Hugging Face to training and back: transformers' loss on a batch is Megatron-Core's on it, before and after."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from slipway.configs import Spec, load
from tests.weights.tiny import make

pytestmark = [pytest.mark.nemo, pytest.mark.slow]
RELATIVE_TOLERANCE = 1e-5
VOCABULARY = 512  # a multiple of 128 times TP: rows of padding would count in the softmax


def _toy(recipe: str, folder: Path, *overrides: str) -> Spec:
    from slipway.launch.rehearsal.rehearse import import_nemo
    from slipway.launch.rehearsal.shrink import shrink

    import_nemo()
    toy = shrink(load(recipe, ["layout.tp=2", "gpus=2", *overrides]).spec)
    run = replace(toy.run, dir=str(folder), checkpoint_every_n_steps=3, async_save=False, val_check_interval=0)
    return replace(toy, name="a", run=run, optim=replace(toy.optim, decay_steps=60))


def _train(spec: Spec, steps: int) -> float:
    """The loss of the last of ``steps`` steps, which is computed with the weights before it."""
    from slipway.launch.rehearsal import ranks

    def work(rank: int) -> float:
        import fiddle as fdl

        from slipway.recipes.build import build

        built = fdl.build(build(replace(spec, run=replace(spec.run, max_steps=steps)), cpu=True))
        built()
        return float(built.keywords["trainer"].callback_metrics["reduced_train_loss"])

    return float(ranks.run(spec.gpus, work, timeout_s=200).results[-1])


def _loss_of_transformers(folder: Path, spec: Spec, step: int) -> float:
    """The loss of a saved model on the batch of a step, counted from 0."""
    from slipway.launch.rehearsal import ranks

    def work(rank: int) -> float:
        import fiddle as fdl
        import torch
        from transformers import AutoModelForCausalLM

        from slipway.recipes.build.data import data_module
        from slipway.recipes.reference import emulation

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        emulation.enter()
        data = fdl.build(data_module(spec, cpu=True))
        data.setup()
        losses = []
        for i in range(step * spec.layout.gbs, (step + 1) * spec.layout.gbs):
            sample = data._train_ds[i]
            with torch.no_grad():
                logits = model(sample["tokens"][None]).logits[0].float()
            each = torch.nn.functional.cross_entropy(logits, sample["labels"], reduction="none")
            losses.append(float((each * sample["loss_mask"]).sum() / sample["loss_mask"].sum()))
        return sum(losses) / len(losses)

    return float(ranks.run(1, work, timeout_s=200).results[0])


def _close(ours: float, theirs: float) -> bool:
    return abs(ours / theirs - 1) <= RELATIVE_TOLERANCE


@pytest.mark.parametrize("recipe", ["llama31_8b", "llama32_1b"])
def test_an_exported_run_has_the_loss_that_it_had(recipe: str, tmp_path: Path) -> None:
    """llama31_8b: TP2, grouped queries, scaled RoPE; llama32_1b: tied embeddings."""
    from slipway.launch.weights.to_hugging_face import export_weights

    spec = _toy(recipe, tmp_path)
    _train(spec, 3)
    done = export_weights(tmp_path / "a", tmp_path / "hf")
    assert done.family == "llama"
    assert _close(_train(spec, 4), _loss_of_transformers(tmp_path / "hf", spec, 3))


def test_training_from_imported_weights_begins_with_their_loss(tmp_path: Path) -> None:
    """On two tensor-parallel ranks, through ``run.base``; three steps later the run is exported, with its tokenizer."""
    import json

    from slipway.launch.weights.from_hugging_face import import_weights
    from slipway.launch.weights.to_hugging_face import export_weights
    from slipway.recipes.runtime.base import checked_base

    make("llama3", tmp_path / "hf", num_hidden_layers=4, vocab_size=VOCABULARY, max_position_embeddings=8192)
    import_weights(tmp_path / "hf", tmp_path / "base")
    toy = _toy("llama3_8b", tmp_path)
    model = replace(toy.model, vocab_size=VOCABULARY, max_position_embeddings=8192)
    spec = replace(toy, model=model, run=replace(toy.run, base=str(tmp_path / "base")))
    checked_base(tmp_path / "base", spec.model)
    assert _close(_train(spec, 1), _loss_of_transformers(tmp_path / "hf", spec, 0))
    _train(spec, 3)
    export_weights(tmp_path / "a", tmp_path / "back")
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [0, 1, 2], "the tokenizer's, not Llama's"
    assert (tmp_path / "back/tokenizer.json").read_bytes() == (tmp_path / "hf/tokenizer.json").read_bytes()
