"""The GPU benchmark, tested without a GPU: the same scripts at toy size."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.schedules import compare
from slipway import configs, planner
from tests import forked


@pytest.mark.nemo
@pytest.mark.slow
def test_the_gpu_benchmark_measures_ours_and_the_peers_at_toy_size(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.gpu", "--cpu", "--out", str(tmp_path / "rows.jsonl")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [r["who"] for r in rows] == ["slipway", "torch", "torch_float8", "transformers"]
    uniform = math.log(configs.model("llama3_tiny").vocab_size)
    for row in rows:
        assert "failed" not in row, row
        assert row["step_time_s"] > 0
        assert abs(row["losses"][0] - uniform) < 0.5, "an untrained model predicts every token with equal probability"
        assert len(row["losses"]) == 4, "one to warm up, two to measure, one to profile"
        assert row["breakdown"]["gemm"] > 0
        assert row["slowest"][0][2] <= sum(row["breakdown"].values())
    assert done.stdout.count("one step, in seconds") == 4
    again = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert again.stdout == done.stdout, "a row in the file is not measured again"
    assert again.stderr == ""


def test_every_gpu_case_is_legal_and_predicted() -> None:
    from benchmarks.gpu.cases import PEERS, VARIANTS, gpu_cases, layers_that_fit, predict

    layers = layers_that_fit("h200")
    assert 16 <= layers <= 32
    todo = gpu_cases("h200", layers)
    ours = [c for c in todo if c.who == "slipway"]
    assert len(ours) == 2 * 4 * 3 * 3 + len(VARIANTS), "2 depths x 4 precisions x 3 recomputes x 3 micro-batches"
    assert len({json.dumps(asdict(c)) for c in todo}) == len(todo)
    assert {c.who for c in todo[:7]} == {"slipway", *PEERS}, "the cases that the ratios need come first"
    assert {c.who for c in todo} - {"slipway"} == set(PEERS)
    for case in ours:
        assert planner.check(case.spec).legal, case
        assert predict(case)["step_time_s"] > 0


def test_the_predictions_in_the_docs_are_those_of_the_planner() -> None:
    """They were written before any measurement: a change to the planner must change the page too."""
    from benchmarks.gpu.cases import gpu_cases, layers_that_fit, predict
    from benchmarks.gpu.tables import describe, predicted_table

    todo = gpu_cases("h200", layers_that_fit("h200"))
    text = (Path(__file__).parents[1] / "docs/gpu.md").read_text()
    assert f"one card: {len(todo)} cases" in text
    written = [line for line in text.splitlines() if line.startswith("| slipway")]
    assert len(written) > 20
    rows = [{"who": c.who, "case": asdict(c), "predicted": predict(c)} for c in todo if c.who == "slipway"]
    names = {line.split(" | ")[0] for line in written}
    assert written == predicted_table([r for r in rows if f"| {describe(r)}" in names]).splitlines()[2:]


def _row(who: str, precision: str, tokens_per_s: float, **more: Any) -> dict[str, Any]:
    case = {"overrides": [f"precision={precision}", "model.num_layers=8", "layout.mbs=1", "layout.recompute=none"]}
    measured = {"step_time_s": 1.0, "model_tflops": 1.0, "mfu": 0.5, "peak_gib": 10.0, "breakdown": {}, "slowest": []}
    return {"who": who, "case": case, "tokens_per_s": tokens_per_s, **measured, **more}


def test_the_ratios_compare_equal_shapes_and_precisions() -> None:
    """fp8 with our bf16, and each precision with the best peer in bf16 or in fp8."""
    from benchmarks.gpu.tables import tables

    rows = [_row("slipway", "bf16", 100.0, mfu=0.58), _row("slipway", "fp8_current", 150.0)]
    rows += [
        _row("torch", "bf16", 80.0),
        _row("transformers", "bf16", 50.0),
        _row("torch_float8", "fp8_current", 120.0),
    ]
    rows.append({"who": "slipway", "case": rows[0]["case"], "failed": "out of memory"})
    text = tables(rows)
    assert "fp8_current over bf16, 8 layers, micro-batch 1: 1.50x" in text
    assert "ours in bf16 over torch, 8 layers, micro-batch 1: 1.25x" in text
    assert "ours in fp8_current over torch_float8, 8 layers, micro-batch 1: 1.25x" in text
    assert "best MFU: 58.0%" in text
    assert "| out of memory |" in text


def test_kernels_are_classified_by_name() -> None:
    """Names as profilers show them on Hopper."""
    from benchmarks.gpu.breakdown import kind_of

    expected = {
        "nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNT": "gemm",
        "sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize128x128x128": "gemm",
        "aten::mm": "gemm",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7": "attention",
        "void at::native::multi_tensor_apply_kernel<FusedAdam>": "optimizer",
        "cross_entropy_kernel": "loss",
        "ncclDevKernel_AllReduce_Sum_bf16_RING_LL": "communication",
        "transformer_engine::normalization::rmsnorm_fwd_tuned_kernel": "elementwise",
        "transformer_engine::cast_transpose_fused_kernel_notaligned": "elementwise",
        "Memcpy DtoD (Device -> Device)": "elementwise",
    }
    assert {name: kind_of(name) for name in expected} == expected


@pytest.mark.nemo
@pytest.mark.slow
def test_two_precisions_are_trained_and_their_losses_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On real text at toy size. The arithmetic of bf16 is the same on a CPU; only its speed is meaningless."""
    from benchmarks.gpu import curves

    text = sorted(map(str, (Path(os.__file__).parent / "email").glob("*.py")))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}

    def slipway(*words: str) -> None:
        done = forked.slipway(*words, environment=environment)
        assert done.returncode == 0, done.stderr[-2000:]

    tokenizer, corpus, out = str(tmp_path / "tokenizer"), str(tmp_path / "corpus"), str(tmp_path / "curves")
    slipway("data", "tokenizer", *text, "--vocab-size", "2048", "--out", tokenizer)
    slipway("data", "prepare", *text, "--tokenizer", tokenizer, "--out", corpus)
    words = ["--cpu", "--data", corpus, "--tokenizer", tokenizer, "--steps", "12", "--seeds", "1", "2", "--out", out]
    monkeypatch.setattr(curves, "slipway", slipway)
    monkeypatch.setattr(sys, "argv", ["curves", *words])
    curves.main()
    printed = capsys.readouterr().out
    assert "bf16 is" in printed and "over 2 seeds: no significant difference" in printed
    assert (tmp_path / "curves/fp32-bf16/compare.html").is_file()


def test_check_prices_every_schedule() -> None:
    keys = ["gpus=64", "layout.tp=4", "layout.pp=4", "layout.gbs=64", "layout.vpp=5"]
    spec = configs.load("llama3_70b", keys).spec
    rows = {row.schedule: row for row in compare(spec)}
    plain, zero = rows["1F1B"], rows["zero bubble (ZB-H1)"]
    assert rows["interleaved 1F1B"].bubble < plain.bubble
    assert zero.bubble < plain.bubble
    assert zero.step_time_s < plain.step_time_s
    assert zero.peak_gib == plain.peak_gib < rows["GPipe"].peak_gib
    assert rows["GPipe"].step_time_s == pytest.approx(plain.step_time_s, rel=0.02)


@pytest.mark.nemo
@pytest.mark.parametrize("gpu", ["h100", "h200", "b200"])
def test_every_case_on_a_gpu_is_legal_there_or_says_why_and_is_accepted_by_megatron_core(
    gpu: str, in_child: Any
) -> None:
    def tried() -> dict[str, Any]:
        from benchmarks.gpu.cases import gpu_cases, layers_that_fit
        from slipway import planner
        from slipway.recipes.build import build
        from slipway.recipes.runtime.merged import merge

        refused, constructed = set(), 0
        for case in gpu_cases(gpu, layers_that_fit(gpu)):
            if case.who != "slipway" or case.cpu:
                continue
            if broken := planner.violations(case.spec):
                refused |= {violation.rule for violation in broken}
                continue
            merge(build(case.spec))
            constructed += 1
        return {"refused": sorted(refused), "constructed": constructed > 30}

    # fp8_blockwise is Hopper's
    assert in_child(tried) == {"refused": ["precision-gpu"] if gpu == "b200" else [], "constructed": True}


def test_the_table_of_families_is_the_written_one() -> None:
    """Each family has a row with a verdict on NeMo's converter; python -m benchmarks.families --write."""
    from benchmarks.families import PAGE, VERDICTS, rows, table

    assert table() in PAGE.read_text()
    assert {row[0].strip("`") for row in rows()} == set(VERDICTS)
