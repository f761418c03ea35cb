"""The card's benchmark, proved without a card: the same scripts, toy sizes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import configs
import planner


@pytest.mark.nemo
@pytest.mark.slow
def test_the_gpu_benchmark_measures_ours_and_the_peers_at_toy_size(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.gpu", "--cpu", "--out", str(tmp_path / "rows.jsonl")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [r["who"] for r in rows] == ["slipway", "torch", "transformers"]
    uniform = math.log(configs.model("llama3_tiny").vocab_size)
    for row in rows:
        assert "failed" not in row, row
        assert row["step_time_s"] > 0
        assert abs(row["losses"][0] - uniform) < 0.5, "untrained, every token is as likely as any other"
    assert "best of each" in done.stdout


def test_every_case_of_the_card_is_predicted_before_it_is_run() -> None:
    from benchmarks.gpu.__main__ import PEERS, cases, layers_that_fit, predict

    layers = layers_that_fit("h200")
    assert 16 <= layers <= 32
    todo = cases(False, "h200", layers)
    ours = [c for c in todo if c.who == "slipway"]
    assert len(ours) == 4 * 3 * 3
    assert {c.who for c in todo} - {"slipway"} == set(PEERS)
    for case in ours:
        assert planner.check(case.spec).legal, case
        assert predict(case)["step_time_s"] > 0


@pytest.mark.nemo
@pytest.mark.slow
def test_the_loss_curves_of_two_precisions_are_trained_and_compared(tmp_path: Path) -> None:
    """On real text, at toy size; bf16's arithmetic on a CPU is real, only its speed says nothing."""
    bin_ = Path(sys.executable).parent
    text = sorted(map(str, (Path(os.__file__).parent / "email").glob("*.py")))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}

    def run(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    tokenizer, corpus, out = str(tmp_path / "tokenizer"), str(tmp_path / "corpus"), str(tmp_path / "curves")
    run(str(bin_ / "slipway"), "data", "tokenizer", *text, "--vocab-size", "2048", "--out", tokenizer)
    run(str(bin_ / "slipway"), "data", "prepare", *text, "--tokenizer", tokenizer, "--out", corpus)
    words = ["--cpu", "--data", corpus, "--tokenizer", tokenizer, "--steps", "12", "--out", out]
    said = run(sys.executable, "-m", "benchmarks.gpu.curves", *words)
    assert "bf16 is" in said and "no difference seen" in said
    assert (tmp_path / "curves/compare.html").is_file()
