"""report and compare: from real event files; the statistics find a difference that is there and none that is not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import configs
import planner
from configs import Refusal, Spec
from configs.load import record_of
from launch.report import compare, loss_difference, smooth, summarize, write_comparison, write_overview, write_report
from launch.report import table as report_table
from launch.runs import LOSS, STEP_TIME, find_runs, read_run
from recipes.run_files import FAILURE, PEAK_MEMORY, RECORD


def _write(
    folder: Path, losses: np.ndarray, step_s: float, spec: Spec, *, first: int = 0, world: int = 2, gpu: str = "", gib: float = 0.0
) -> Path:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))
    for i, loss in enumerate(losses):
        writer.add_scalar(LOSS, loss, first + i)
        writer.add_scalar(STEP_TIME, step_s, first + i)
        if gib:
            writer.add_scalar(PEAK_MEMORY, gib, first + i)
    writer.close()
    record = folder / RECORD
    record.parent.mkdir(parents=True, exist_ok=True)
    device = {"device": "cuda:0", "device_name": gpu} if gpu else {"device": "cpu"}
    record.write_text(json.dumps({"spec": record_of(spec), "world_size": world, **device}))
    return folder


def _curve(seed: int, steps: int = 400, shift: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.02, steps)
    return (2 + 6 * np.exp(-np.arange(steps) / 60) + noise) * (1 + shift)


@pytest.fixture
def spec() -> Spec:
    base = configs.load("llama3_tiny").spec
    return replace(base, run=replace(base.run, max_steps=400))


def test_a_run_is_read_and_reported(tmp_path: Path, spec: Spec) -> None:
    run = read_run(_write(tmp_path / "a", _curve(0), 0.5, spec))
    s = summarize(run)
    assert (s.steps, s.ranks, s.state, s.layout) == (400, 2, "finished", "TP2")
    assert s.step_time_median_s == pytest.approx(0.5)
    assert s.tokens_per_s_per_gpu == pytest.approx(spec.batch.tokens / 0.5 / 2)
    assert s.mfu is None, "no MFU on a CPU"
    written = write_report(run, tmp_path / "out", 6.0)
    assert {p.name for p in written} == {"loss.png", "report.html", "report.json"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page and "<script" not in page
    assert not re.findall(r"(?:src|href)=.?https?://", page), "self-contained"


def test_a_resumed_run_counts_each_step_once(tmp_path: Path, spec: Spec) -> None:
    _write(tmp_path / "a", np.full(10, 5.0), 0.5, spec)
    run = read_run(_write(tmp_path / "a", np.full(10, 4.0), 0.5, spec, first=6))
    loss = run.get(LOSS)
    assert list(loss.steps) == list(range(16))
    assert list(loss.values[:6]) == [5.0] * 6 and list(loss.values[6:]) == [4.0] * 10
    assert run.state != "finished"
    assert (run.starts, run.repeated_steps) == (2, 4)
    rows = dict(report_table(summarize(run)))
    assert rows["steps trained again after a restart"] == "4"


def test_measured_on_a_gpu_it_is_held_against_the_prediction_for_that_gpu(tmp_path: Path) -> None:
    """By the card's own name: planned for an H100, run on an H200; a card that is not in configs/gpu has no MFU and no prediction."""
    spec = planner.complete(configs.load("llama3_8b", ["gpus=8", "layout.tp=1", "layout.fsdp=true", "layout.gbs=64"]))
    on_h200 = replace(spec, gpu=configs.gpu("h200"))
    predicted = planner.check(on_h200)
    assert predicted.time and predicted.memory
    step_s, gib = 1.1 * predicted.time.step_time_s, predicted.memory.peak_gib / 1.2
    s = summarize(read_run(_write(tmp_path / "a", _curve(0, 20), step_s, spec, world=8, gpu="NVIDIA H200", gib=gib)))
    assert s.gpu == "h200"
    assert s.step_time_error == pytest.approx(1 / 1.1 - 1, abs=1e-4)
    assert s.peak_memory_error == pytest.approx(0.2, abs=1e-4)
    assert s.mfu == pytest.approx(predicted.time.mfu / 1.1, rel=1e-3)
    other = summarize(read_run(_write(tmp_path / "b", _curve(0, 20), step_s, spec, world=8, gpu="NVIDIA H100 PCIe", gib=gib)))
    assert other.gpu == "NVIDIA H100 PCIe"
    assert (other.mfu, other.predicted_step_time_s, other.peak_memory_error) == (None, None, None)
    assert other.model_tflops_per_gpu == pytest.approx(s.model_tflops_per_gpu)


def test_a_failed_run_says_why(tmp_path: Path, spec: Spec) -> None:
    folder = _write(tmp_path / "a", _curve(0, 20), 0.5, spec)
    failure = {"step": 20, "rank": 3, "error": "OutOfMemoryError", "message": "Tried to allocate 2 GiB"}
    (folder / FAILURE).write_text(json.dumps(failure))
    run = read_run(folder)
    assert run.state == "failed"
    assert dict(report_table(summarize(run)))["failed"] == "in step 20, on rank 3: OutOfMemoryError: Tried to allocate 2 GiB"
    (tmp_path / "b/slipway").mkdir(parents=True)
    (tmp_path / "b" / FAILURE).write_text(json.dumps(failure | {"step": 0}))
    assert find_runs(tmp_path) == [tmp_path / "a", tmp_path / "b"], "also one that failed before it had a record"
    assert summarize(read_run(tmp_path / "b")).state == "failed"


def test_a_folder_of_runs_and_a_folder_of_none(tmp_path: Path, spec: Spec) -> None:
    _write(tmp_path / "x" / "a", _curve(0, 20), 0.5, spec)
    _write(tmp_path / "x" / "b", _curve(1, 20), 0.5, spec)
    assert [p.name for p in find_runs(tmp_path / "x")] == ["a", "b"]
    runs = [read_run(p) for p in find_runs(tmp_path / "x")]
    pages = [write_report(run, run.path)[1] for run in runs]
    png, page, data = write_overview(runs, pages, tmp_path / "x")
    assert png.stat().st_size > 10_000
    for link in re.findall(r'<a href="([^"]*)"', page.read_text()):
        assert (page.parent / link).is_file()
    assert page.read_text().count("<a href=") == 2
    assert [r["name"] for r in json.loads(data.read_text())] == ["a", "b"]
    with pytest.raises(Refusal, match="holds no run"):
        read_run(tmp_path)


def test_no_difference_is_seen_where_there_is_none_and_one_where_there_is(tmp_path: Path, spec: Spec) -> None:
    a = read_run(_write(tmp_path / "bf16", _curve(0), 0.50, spec))
    b = read_run(_write(tmp_path / "fp8", _curve(1), 0.40, spec))
    c = read_run(_write(tmp_path / "worse", _curve(2, shift=0.02), 0.40, spec))
    same, worse = compare(a, b), compare(a, c)
    assert same.speed_up == pytest.approx(1.25)
    assert "no difference seen" in same.sentence
    assert "its loss is higher" in worse.sentence
    assert worse.loss_difference == pytest.approx(0.02, abs=0.003)
    result, written = write_comparison(a, b, tmp_path / "out")
    assert {p.suffix for p in written} == {".png", ".html", ".json"}
    assert result.sentence.startswith("fp8 is 1.25x as fast as bf16")


def test_noise_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = sum(abs(d) <= n for d, n in (loss_difference(_curve(2 * i), _curve(2 * i + 1)) for i in range(200)))
    assert 0.86 <= covered / 200 <= 1.0


def test_runs_of_different_batch_are_aligned_by_tokens(tmp_path: Path, spec: Spec) -> None:
    double = replace(spec, layout=replace(spec.layout, gbs=2 * spec.layout.gbs))
    a = read_run(_write(tmp_path / "a", _curve(0), 0.5, spec))
    b = read_run(_write(tmp_path / "b", _curve(1)[::2], 0.9, double))
    assert compare(a, b).aligned_by == "tokens"


def test_a_loss_that_is_not_finite_is_shown_and_not_compared(tmp_path: Path, spec: Spec) -> None:
    losses = _curve(0, 40)
    losses[30:] = np.nan
    broken, whole = (read_run(_write(tmp_path / name, v, 0.5, spec)) for name, v in (("broken", losses), ("whole", _curve(1, 40))))
    assert dict(report_table(summarize(broken)))["final loss (mean of last 10)"] == "nan"
    data = write_report(broken, tmp_path / "out")[2]
    assert json.loads(data.read_text(), parse_constant=pytest.fail)["final_loss"] is None
    with pytest.raises(Refusal, match="the loss of broken is not finite"):
        compare(whole, broken)


def test_smoothing_keeps_a_line_and_halves_the_noise() -> None:
    line = np.linspace(3.0, 1.0, 50)
    assert smooth(line) == pytest.approx(line)
    noisy = line + np.random.default_rng(0).normal(0, 0.1, 50)
    assert np.abs(smooth(noisy) - line).mean() < np.abs(noisy - line).mean() / 2
    assert len(smooth(np.zeros(0))) == 0
