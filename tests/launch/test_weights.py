"""A checkpoint written for Hugging Face is the same model: transformers' loss on a batch is Megatron-Core's on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slipway.configs import Refusal, load


@pytest.mark.nemo
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["llama31_8b", "llama32_1b"])
def test_transformers_gives_the_loss_that_megatron_gave(recipe: str, tmp_path: Path) -> None:
    """llama31_8b: TP2, grouped queries, scaled RoPE; llama32_1b: tied embeddings.

    The loss of step 4 is computed with the weights after step 3.
    """
    from slipway.launch.rehearsal import ranks
    from slipway.launch.rehearsal.rehearse import import_nemo
    from slipway.launch.rehearsal.shrink import shrink
    from slipway.launch.weights.export import export

    import_nemo()
    toy = shrink(load(recipe, ["layout.tp=2", "gpus=2"]).spec)
    kept = replace(
        toy.run, dir=str(tmp_path), max_steps=3, checkpoint_every_n_steps=3, async_save=False, val_check_interval=0
    )
    spec = replace(toy, name="a", run=kept, optim=replace(toy.optim, decay_steps=60))

    def train(steps: int) -> Any:
        def work(rank: int) -> float:
            import fiddle as fdl

            from slipway.recipes.build import build

            built = fdl.build(build(replace(spec, run=replace(kept, max_steps=steps)), cpu=True))
            built()
            return float(built.keywords["trainer"].callback_metrics["reduced_train_loss"])

        return ranks.run(2, work, timeout_s=200).results[-1]

    train(3)
    out = tmp_path / "hf"

    def write_and_ask(rank: int) -> float:
        import torch
        from transformers import AutoModelForCausalLM

        from slipway.recipes.reference import emulation

        export(str(tmp_path / "a"), str(out), "float32")
        model = AutoModelForCausalLM.from_pretrained(out, torch_dtype=torch.float32)
        emulation.enter()
        import fiddle as fdl

        from slipway.recipes.build.data import pretraining_data

        data = fdl.build(pretraining_data(spec, cpu=True))
        data.setup()
        gbs = spec.layout.gbs
        losses = []
        for i in range(3 * gbs, 4 * gbs):
            sample = data._train_ds[i]
            with torch.no_grad():
                logits = model(sample["tokens"][None]).logits[0].float()
            each = torch.nn.functional.cross_entropy(logits, sample["labels"], reduction="none")
            losses.append(float((each * sample["loss_mask"]).sum() / sample["loss_mask"].sum()))
        return sum(losses) / len(losses)

    theirs = ranks.run(1, write_and_ask, timeout_s=200).results[0]
    ours = train(4)
    assert abs(theirs / ours - 1) <= 1e-5, (theirs, ours)
    with pytest.raises(Refusal, match="is already there"):
        export(str(tmp_path / "a"), str(out))


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    from slipway.launch.weights.export import export

    with pytest.raises(Refusal, match="holds no run"):
        export(str(tmp_path), str(tmp_path / "x"))
