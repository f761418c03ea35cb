"""Finetuning trains one model whatever the layout, resumes with the same bits, and exports what it trained."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slipway import planner
from slipway.configs import Data, Spec, load
from slipway.configs.schema import DataKind
from slipway.launch.rehearsal import ranks
from slipway.launch.rehearsal.rehearse import import_nemo, rehearse, run_toy
from slipway.launch.rehearsal.shrink import shrink, single_process
from slipway.recipes.runtime.base import tokenizer_of_base
from tests.weights.tiny import make

pytestmark = [pytest.mark.nemo, pytest.mark.slow]
VOCABULARY = 512  # a multiple of 128 times TP: rows of padding would count in the softmax
MOE = "gpus=8 layout.tp=2 layout.ep=4 layout.gbs=8"


def _spec(recipe: str, words: str) -> Spec:
    spec = planner.complete(load(recipe, words.split()))
    planner.require_legal(spec)
    return spec


@pytest.mark.parametrize(
    ("recipe", "words", "tolerance"),
    [
        ("llama3_8b", "task=lora gpus=2 layout.tp=2 layout.gbs=8", 1e-6),
        ("llama3_8b", "task=lora gpus=2 layout.tp=1 layout.pp=2 layout.gbs=8 layout.recompute=full", 1e-6),
        ("llama3_8b", "task=lora gpus=2 layout.tp=1 layout.cp=2 layout.gbs=8 data.packed=false", 1e-6),
        ("llama3_8b", "task=sft gpus=2 layout.tp=1 layout.gbs=8", 1e-6),
        ("llama3_8b", "task=dora gpus=2 layout.tp=2 layout.gbs=8", 5e-6),
        ("mixtral_8x7b", f"task=lora {MOE}", 1e-5),
        ("mixtral_8x7b", f"task=sft {MOE}", 1e-5),
        ("deepseek_v3", "task=lora gpus=64 layout.ep=64 layout.gbs=64 model.mtp_num_layers=0", 1e-5),
    ],
)  # fmt: skip
def test_every_layout_trains_the_model_of_one_process(recipe: str, words: str, tolerance: float) -> None:
    result = rehearse(_spec(recipe, words))
    assert result.max_rel_diff <= tolerance, (result.losses, result.reference_losses)
    assert len(set(result.losses)) == 5, "the weights moved"


def test_without_the_loss_per_token_a_layout_would_change_the_model() -> None:
    """The default of NeMo averages by micro-batch and rank; context ranks have different numbers of answer tokens."""

    def upstream(recipe: Any) -> None:
        recipe.model.config.calculate_per_token_loss = False
        recipe.trainer.strategy.ddp.average_in_collective = True

    toy = shrink(_spec("llama3_8b", "task=sft gpus=2 layout.tp=1 layout.cp=2 layout.gbs=8 data.packed=false"))
    split, whole = run_toy(toy, change=upstream)[0], run_toy(single_process(toy), change=upstream)[0]
    assert max(abs(a / b - 1) for a, b in zip(split, whole, strict=True)) > 1e-5


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with its Hugging Face folder, and instructions for it."""
    from slipway.launch.weights.from_hugging_face import import_weights

    folder = tmp_path_factory.mktemp("finetune")
    make("llama3", folder / "hf", num_hidden_layers=4, vocab_size=VOCABULARY, max_position_embeddings=8192)
    import_weights(folder / "hf", folder / "base")
    lines = [{"prompt": f"a ship {i} is", "completion": " built" * (1 + i % 5)} for i in range(40)]
    (folder / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _toy(prepared: Path, folder: Path, *words: str) -> Spec:
    import_nemo()
    toy = shrink(load("llama3_8b", ["gpus=2", "layout.tp=2", "layout.gbs=8", *words]).spec)
    base = prepared / "base"
    paths: dict[str, Any] = {"paths": [str(prepared / "training.jsonl")], "tokenizer": tokenizer_of_base(base)}
    return replace(
        toy,
        name="a",
        model=replace(toy.model, vocab_size=VOCABULARY, max_position_embeddings=8192),
        data=Data(name="instructions", kind=DataKind.instructions, split="1,0,0", **paths),
        run=replace(
            toy.run,
            dir=str(folder),
            base=str(base),
            checkpoint_every_n_steps=3,
            checkpoint_every_minutes=0,
            async_save=False,
            val_check_interval=0,
        ),
        optim=replace(toy.optim, decay_steps=60),
    )


def _train(spec: Spec, steps: int, kill: bool = False) -> dict[int, str]:
    """The bits of each step's loss on the last rank; with ``kill``, rank 0 is killed as soon as it has saved."""
    losses = Path(spec.run.dir) / "losses"

    def work(rank: int) -> None:
        import fiddle as fdl
        import lightning.pytorch as pl

        from slipway.recipes.build import build

        class Watch(pl.Callback):
            def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
                if rank == spec.gpus - 1:
                    with losses.open("a") as f:
                        loss = float(trainer.callback_metrics["reduced_train_loss"])
                        f.write(f"{trainer.global_step} {loss.hex()}\n")
                if kill and rank == 0 and trainer.global_step == 4:
                    threading.Thread(target=os.kill, args=(os.getpid(), 9)).start()

        recipe = build(replace(spec, run=replace(spec.run, max_steps=steps)), cpu=True)
        recipe.trainer.enable_progress_bar = False
        built = fdl.build(recipe)
        built.keywords["trainer"].callbacks.append(Watch())
        built()

    losses.parent.mkdir(parents=True, exist_ok=True)
    try:
        ranks.run(spec.gpus, work, timeout_s=300)
    except ranks.RankFailure as failure:
        if not kill:
            pytest.fail(failure.log[-3000:])
    return {int(step): loss for step, loss in (line.split() for line in losses.read_text().splitlines())}


@pytest.mark.parametrize("task", ["lora", "sft"])
def test_killed_and_resumed_it_trains_the_same_bits(prepared: Path, tmp_path: Path, task: str) -> None:
    """Adapters resume over a base that has moved; no batch is trained twice."""
    whole = _train(_toy(prepared, tmp_path / "whole", f"task={task}"), 7)
    stopped = _toy(prepared, tmp_path / "stopped", f"task={task}")
    _train(stopped, 7, kill=True)
    if task == "lora":
        shutil.copytree(prepared / "base", tmp_path / "moved")
        stopped = replace(stopped, run=replace(stopped.run, base=str(tmp_path / "moved")))
    assert _train(stopped, 7) == whole
    assert len(set(whole.values())) == 7


def _logits(model: Any) -> Any:
    import torch

    tokens = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(tokens).logits


def _loss_of(model: Any, spec: Spec, step: int) -> float:
    """The loss per answer token of a model of transformers on a batch, each example alone."""
    import fiddle as fdl
    import torch

    from slipway.recipes.build.data import data_module

    data = fdl.build(data_module(spec, cpu=True))
    data.prepare_data()
    data.setup()
    total, count = 0.0, 0
    for index in range(step * spec.layout.gbs, (step + 1) * spec.layout.gbs):
        item = data._train_ds[index]
        ends = item["cu_seqlens"].tolist()
        for start, end in itertools.pairwise(ends):
            tokens, labels, mask = (item[name][start:end] for name in ("tokens", "labels", "loss_mask"))
            with torch.no_grad():
                logits = model(tokens[None]).logits[0]
            each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            total, count = total + float((each * mask).sum()), count + int(mask.sum())
    return total / count


@pytest.mark.parametrize("task", ["lora", "dora"])
def test_merged_and_peft_exports_are_the_same_model(prepared: Path, tmp_path: Path, task: str) -> None:
    """The loss of the next step, packed on two ranks; the merged export on each example alone; PEFT on the base."""
    import torch
    from transformers import AutoModelForCausalLM

    from slipway.launch.weights.to_hugging_face import export_weights

    spec = _toy(prepared, tmp_path, f"task={task}")
    _train(spec, 3)
    for adapter in ("merged", "peft"):
        export_weights(tmp_path / "a", tmp_path / adapter, adapter=adapter)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    following = float.fromhex(_train(replace(spec, name="b"), 4)[4])

    def compare(_: int) -> tuple[float, float, float]:
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(prepared / "hf", dtype=torch.float32)
        before = _logits(base)
        adapted = _logits(PeftModel.from_pretrained(base, tmp_path / "peft"))
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
        moved, apart = (float((adapted - other).abs().max()) for other in (before, _logits(merged)))
        return moved, apart, _loss_of(merged, spec, 3)

    moved, apart, loss = ranks.run(1, compare, timeout_s=200).results[0]
    assert moved > 1e-3, "the adapter does something"
    assert apart <= 5e-6
    assert abs(following / loss - 1) <= 1e-6
    assert (tmp_path / "merged/config.json").read_text() == (prepared / "hf/config.json").read_text()
