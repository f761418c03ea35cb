"""Malformed input of every kind ends with one sentence, whatever the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipway.configs import load
from tests.launch import fuzz

CASES, SEED = 2000, 15


def test_no_malformed_input_ends_in_a_traceback(tmp_path: Path) -> None:
    """Each case ends with exit code 0, or 2 and one sentence; `python -m tests.launch.fuzz` prints more of them."""
    found = list(fuzz.campaign(CASES, SEED, tmp_path))
    assert not found, "\n\n".join(f"case {number}: {case.words}\n{wrong}" for number, case, wrong in found[:5])


def test_the_fuzzer_notices_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = fuzz.Case(["list"])
    assert not fuzz.fault(case, tmp_path)
    monkeypatch.setattr("slipway.configs.recipe_names", lambda: 1 / 0)
    assert "ZeroDivisionError" in fuzz.fault(case, tmp_path)
    monkeypatch.setattr(fuzz, "LIMIT_S", 0.05)

    def never() -> list[str]:
        while True:
            pass

    monkeypatch.setattr("slipway.configs.recipe_names", never)
    assert "took more than" in fuzz.fault(case, tmp_path)


NAMED = {
    "nodes=²": "nodes=² is not legal: it must be a whole number",
    "nodes=" + "9" * 30: "it must be a whole number, between 1 and 1250000",
    "gpus=" + "9" * 30: "is not legal",
    "gpus=" + "9" * 5000: "could not be read",
    "name=true": "name=True is not legal: it must be text",
    "name=" + "x" * 300: "the name of a folder: printable, without a slash, of at most 200 bytes",
    "name=${nope}": "refers to another value",
    "run.dir=${oc.env:HOME}": "refers to another value",
    "optim.lr=nan": "optim.lr=nan is not legal: it must be a finite number",
    "gpu.bf16_tflops=nan": "it must be a finite number",
    "gpu.bf16_tflops=-0.0": "must be above 0",
    "precision.gemm=fp9": "it must be one of fp32, bf16, fp8, fp4",
    "model.family=llama9": "unknown model.family 'llama9'; did you mean llama4 or llama3",
    "model.nemo_config=Llama3Config9B": "unknown model.nemo_config 'Llama3Config9B'; did you mean",
    "gpu.architecture=volta": "is not legal: it must be one of ampere, ada, hopper, blackwell, blackwell_ultra",
    "cluster.env={A: [1]}": "cluster.env={'A': [1]} is not legal: it must be a mapping of names to texts",
    "task.lora_rank=-1": "must be 0 or more",
    "cluster.time=8h": "it must be a time limit of SLURM, such as 08:00:00 or 2-12:00:00",
    "tpp=4": "unknown key 'tpp'; did you mean",
}


@pytest.mark.parametrize("override", NAMED, ids=lambda text: text[:30])
def test_a_malformed_value_is_named_with_what_is_legal(override: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert NAMED[override] in _refusal(["check", "llama3_8b", "layout.tp=2", override], capsys)


CLUSTERS = {
    "executor: slurm\nenv: {A: b, A: c}\n": "A is given twice",
    "executor: slurm\nexecutor: local\n": "executor is given twice",
    "executor: !!python/object/apply:os.system [id]\n": "is not YAML",
    "executor: slurm\nenv: {A: [1, 2]}\n": "it must be a mapping of names to texts",
    "executor: slurm\nenv: [A]\n": "it must be a mapping of names to texts",
    "executor: slurm\ngpus_per_node: many\n": "it must be a whole number",
    "executor: slurm\nnope: 1\n": "nope is unknown",
    "a: &x {b: *x}\n": "a is unknown",
}


@pytest.mark.parametrize("text", CLUSTERS, ids=range(len(CLUSTERS)))
def test_a_malformed_cluster_file_is_named(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site.yaml").write_text(text)
    said = _refusal(["check", "llama3_8b", f"cluster={tmp_path}/site.yaml"], capsys)
    assert CLUSTERS[text] in said and "site.yaml" in said


@pytest.mark.parametrize(
    "words",
    [
        ["check", "llama3_8b", "--plot", ""],
        ["plan", "llama3_8b", "gpus=8", "--plot", ""],
        ["goodput", "llama3_8b", "--plot", ""],
        ["report", ".", "--out", ""],
        ["compare", ".", ".", "--out", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_to_write_to_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "it is empty: give a path to write to" in _refusal(words, capsys)


def test_files_and_folders_in_each_others_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    plot = ["check", "llama3_8b", "layout.tp=2", "--plot"]
    assert "file" in _refusal([*plot, f"{tmp_path}/file/plot"], capsys)
    assert "File name too long" in _refusal([*plot, f"{tmp_path}/{'x' * 300}"], capsys)
    assert "no/such" in _refusal([*plot, f"{tmp_path}/no/such/plot"], capsys)


def test_precisions_without_one_to_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert "fp32" in _refusal(["plan", "llama3_8b", "gpus=8", "--precisions", "fp32"], capsys)


def test_short_names_stand_for_the_keys_of_a_layout() -> None:
    short = load("llama3_8b", ["num_nodes=2", "tp=2", "mbs=1", "gbs=64", "fsdp=1", "lr=1e-4"]).spec
    assert (
        short
        == load(
            "llama3_8b",
            ["nodes=2", "layout.tp=2", "layout.mbs=1", "layout.gbs=64", "layout.fsdp=megatron", "optim.lr=1e-4"],
        ).spec
    )


def test_an_unknown_key_names_the_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean layout.tp or tp?" in _refusal(["check", "llama3_8b", "batch.tp=2"], capsys)
    said = _refusal(["check", "llama3_8b", "qqqqq=2"], capsys)
    assert "layout.*" in said and len(said) < 400


def _refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a command prints when it refuses."""
    import sys
    from unittest import mock

    from slipway.launch.cli.app import main

    with mock.patch.object(sys, "argv", ["slipway", *words]), pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("slipway: ") and said.count("\n") == 1, said
    return said
