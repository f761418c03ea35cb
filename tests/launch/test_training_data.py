"""What check and launch say about a run's data: tokens, epochs, a tokenizer that does not fit, missing files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from slipway.configs import Refusal, load
from slipway.launch.cli.training_data import training_data
from slipway.launch.rehearsal import ranks
from slipway.launch.rehearsal.rehearse import import_nemo
from slipway.recipes.runtime.data_check import MAGIC, tokens_in
from tests import forked

UINT16 = 8  # the index's code of a token type of two bytes


def write_prefix(prefix: Path, documents: int, length: int, token: int = 1) -> str:
    """A .bin/.idx pair of ``documents`` documents of ``length`` tokens each, which are all ``token``."""
    Path(f"{prefix}.bin").write_bytes(struct.pack("<H", token) * documents * length)
    header = MAGIC + struct.pack("<QBQQ", 1, UINT16, documents, documents + 1)
    lengths = struct.pack(f"<{documents}i", *[length] * documents)
    pointers = struct.pack(f"<{documents}q", *(2 * length * i for i in range(documents)))
    indices = struct.pack(f"<{documents + 1}q", *range(documents + 1))
    Path(f"{prefix}.idx").write_bytes(header + lengths + pointers + indices)
    return str(prefix)


def write_tokenizer(folder: Path, ids: int) -> str:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {str(i): i for i in range(ids)}}}))
    return str(folder)


def test_epochs_follow_from_the_index_and_many_are_a_warning(tmp_path: Path) -> None:
    prefix = write_prefix(tmp_path / "a", documents=100, length=50)
    assert tokens_in(prefix) == 5000
    found = training_data(load("llama3_8b", [f"data.paths=[{prefix}]", "gpus=8"]).spec)
    assert found.tokens == 4500, "data.split trains on nine tenths"
    assert found.epochs == pytest.approx(found.needed / 4500)
    assert found.describe() == f"4.5 K tokens for a 15 T-token schedule: {found.epochs:,.0f} epochs"
    assert f"the run reads its data {found.epochs:,.0f} times" in found.warnings[0][0]
    few = ["run.max_steps=1", "layout.gbs=1", "layout.seq_length=1024", "data.split='1,0,0'"]
    short = training_data(load("llama3_8b", [f"data.paths=[{prefix}]", "gpus=1", *few]).spec)
    assert (short.epochs, short.warnings) == (1024 / 5000, ())


def test_of_a_blend_the_most_repeated_source_counts(tmp_path: Path) -> None:
    small, large = write_prefix(tmp_path / "a", 100, 10), write_prefix(tmp_path / "b", 100, 90)
    size = ["data.split='1,0,0'", "run.max_steps=1", "layout.gbs=1", "layout.seq_length=1000"]
    even = training_data(load("llama3_8b", [f"data.paths=[{small},{large}]", *size]).spec)
    assert even.tokens == 10_000
    assert even.epochs == pytest.approx(0.1)
    weighted = training_data(load("llama3_8b", [f"data.paths=[0.5,{small},0.5,{large}]", *size]).spec)
    assert weighted.epochs == pytest.approx(0.5)
    own = [f"data.paths=[{small}]", f"data.validation_paths=[{large}]", *size[1:]]
    assert training_data(load("llama3_8b", own).spec).tokens == 1000


def test_files_elsewhere_and_a_tokenizer_that_does_not_fit_are_warnings(tmp_path: Path) -> None:
    elsewhere = training_data(load("llama3_8b", ["data.paths=[/nowhere/a]"]).spec)
    assert elsewhere.tokens is None and "there is no /nowhere/a.idx" in elsewhere.warnings[0][0]
    for ids, expected in ((1000, "most of the embedding is never trained"), (200_000, "the run would be refused")):
        tokenizer = write_tokenizer(tmp_path / str(ids), ids)
        (warning,) = training_data(load("llama3_8b", [f"data.tokenizer={tokenizer}"]).spec).warnings
        assert expected in warning[0] and f"{ids:,} ids" in warning[0]


@pytest.mark.nemo
def test_a_job_on_a_cluster_has_data_or_says_mock(in_child: Any, tmp_path: Path) -> None:
    prefix = write_prefix(tmp_path / "a", 200, 50)

    def ask() -> list[str]:
        from slipway.launch.executors.prepare import prepare

        answers = []
        for words in ([], ["data=mock"], [f"data.paths=[0.3,{prefix},0.7,{prefix}]"]):
            try:
                site = ["cluster=dgx_h100", "nodes=1", "layout.tp=2", f"run.dir={tmp_path}"]
                ready = prepare("llama3_tiny", [*site, *words], allow_dirty=True)
                answers.append(ready.spec.data.kind.value)
            except Refusal as refusal:
                answers.append(refusal.sentence())
        return answers

    nothing, mock, files = in_child(ask)
    assert "would train on random tokens" in nothing and "data=mock" in nothing
    assert (mock, files) == ("mock", "indexed")


@pytest.mark.nemo
def test_nemo_reads_the_blend_and_the_files_of_each_split(in_child: Any, tmp_path: Path) -> None:
    a, b, c = (write_prefix(tmp_path / name, 200, 50) for name in "abc")

    def ask() -> list[Any]:
        import fiddle as fdl

        from slipway.recipes.build.data import data_module

        blends = []
        for words in ([f"data.paths={{{a}: 0.3, {b}: 0.7}}"], [f"data.paths=[{a}]", f"data.validation_paths=[{c}]"]):
            module = fdl.build(data_module(load("llama3_tiny", words).spec, cpu=True))
            blends.append([module.build_kwargs.get(key) for key in ("blend", "split", "blend_per_split")])
        return blends

    weighted, split = in_child(ask)
    assert [list(part) for part in weighted[0]] == [[a, b], [0.3, 0.7]] and weighted[1:] == ["900,50,50", None]
    assert split[:2] == [None, None]
    assert [list(prefixes) for prefixes, _ in split[2]] == [[a], [c], [c]]


@pytest.mark.nemo
def test_validation_sets_are_read_back_from_what_is_built(tmp_path: Path, in_child: Any) -> None:
    a, b = (write_prefix(tmp_path / name, 200, 50) for name in "ab")
    words = [f"data.paths=[{a}]", "run.val_check_interval=5", f"data.validation_sets={{web: {b}}}"]

    def ask() -> list[dict[str, str]]:
        from slipway.recipes.build import build
        from slipway.recipes.readback import of_recipe, read_back

        spec, plain = load("llama3_tiny", words).spec, load("llama3_tiny", words[:1]).spec
        return [
            read_back(of_recipe(build(one, cpu=True)), base).data.validation_sets
            for one, base in ((spec, plain), (plain, spec))
        ]

    assert in_child(ask) == [{"web": b}, {}]


@pytest.mark.nemo
@pytest.mark.slow
def test_training_draws_from_a_blend_by_weight_and_validates_on_the_files_of_its_split(tmp_path: Path) -> None:
    """Two runs of a toy. Each file holds one token, so that a sample says which file it is from: training learns the
    tokens of the blend, and is surprised by those of the validation files.
    """
    a, b, c = (write_prefix(tmp_path / name, 200, 50, token) for name, token in (("a", 11), ("b", 12), ("c", 13)))
    blend = [f"data.paths=[0.25,{a},0.75,{b}]"]
    splits = [
        f"data.paths=[{a}]",
        f"data.validation_paths=[{c}]",
        "run.val_check_interval=8",
        "run.limit_val_batches=1",
    ]

    def train(words: list[str]) -> Any:
        return forked.forked(lambda: _trained(words, tmp_path), cwd=tmp_path)

    drawn = train(["name=blend", *blend])
    assert drawn.code == 0, drawn.stderr[-3000:]
    assert drawn.result["steps"] == 8
    consumed = drawn.result["samples"]
    assert set(consumed) == {"11", "12"}
    assert consumed["12"] == pytest.approx(0.75 * 32, abs=1), "Megatron-Core's blend keeps the weights within a sample"
    assert drawn.result["train"] < 2.0, "two tokens of 2,048 are learned"
    split = train(["name=split", *splits])
    assert split.code == 0, split.stderr[-3000:]
    assert set(split.result["samples"]) == {"11"}
    assert split.result["train"] < 1.0 < 4.0 < split.result["val_loss"], "validation reads other files"


@pytest.mark.nemo
@pytest.mark.slow
def test_validation_sets_are_evaluated_by_name(tmp_path: Path) -> None:
    """Each file holds one token, so that a loss says which file was read: twelve is trained on, thirteen is not. The
    sets change nothing of the training, and two pipeline stages find the losses of one process on every rank.
    """
    b, c = (write_prefix(tmp_path / name, 200, 50, token) for name, token in (("b", 12), ("c", 13)))
    words = [f"data.paths=[{b}]", "run.val_check_interval=8", "run.limit_val_batches=2"]
    sets = f"data.validation_sets={{twelve: {b}, thirteen: {c}}}"
    import_nemo()

    def train(name: str, *more: str) -> list[dict[str, Any]]:
        count = 2 if "layout.pp=2" in more else 1

        def work(rank: int) -> dict[str, Any]:
            return _trained([*words, f"name={name}", f"gpus={count}", *more], tmp_path)

        try:
            return list(ranks.run(count, work, timeout_s=300).results)
        except ranks.RankFailure as failure:
            pytest.fail(failure.log[-5000:])

    (plain,), (named,) = train("plain"), train("named", sets)
    assert named["val_loss/twelve"] < 1.0 < 4.0 < named["val_loss/thirteen"]
    assert {key: named[key] for key in plain} == plain, "nothing else is changed, bit for bit"
    first, last = train("staged", sets, "layout.pp=2")
    for name in ("val_loss/twelve", "val_loss/thirteen"):
        assert first[name] == last[name] == pytest.approx(named[name], rel=0.25, abs=1e-3)


def _trained(words: list[str], folder: Path) -> dict[str, Any]:
    """Train a toy for 8 steps of 4 sequences: the last losses, and how many of the samples are of which token."""
    from collections import Counter

    import fiddle as fdl
    import lightning.pytorch as pl

    from slipway.recipes.build import build

    toy = ["layout.tp=1", "gpus=1", "layout.mbs=2", "layout.gbs=4", "run.max_steps=8", "optim.lr=1e-2"]
    toy += ["optim.warmup_steps=0", "run.checkpoint_every_n_steps=0", f"run.dir={folder}/runs"]
    recipe = build(load("llama3_tiny", [*toy, *words]).spec, cpu=True)
    seen: dict[str, float] = {}

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            seen["train"] = float(trainer.callback_metrics["reduced_train_loss"])

        def on_validation_end(self, trainer: Any, *args: Any) -> None:
            for name in ("val_loss", "val_loss/twelve", "val_loss/thirteen"):
                if name in trainer.callback_metrics:
                    seen[name] = float(trainer.callback_metrics[name])

    built = fdl.build(recipe)
    built.keywords["trainer"].callbacks.append(Losses())
    built()
    data = built.keywords["data"]._train_ds
    samples = Counter(str(int(data[i]["tokens"][0])) for i in range(32))
    return {"steps": built.keywords["trainer"].global_step, "samples": samples, **seen}
