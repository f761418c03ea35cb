"""report and compare: from real event files; the statistics find a difference that is there and none that is not."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import configs
from configs import Refusal, Spec
from launch.report import compare, loss_difference, smooth, summarize, write_comparison, write_report
from launch.runs import LOSS, STEP_TIME, find_runs, read_run
from recipes.run_files import RECORD


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return getattr(value, "value", value)


def _write(folder: Path, losses: np.ndarray, step_s: float, spec: Spec, *, first: int = 0, world: int = 2) -> Path:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))
    for i, loss in enumerate(losses):
        writer.add_scalar(LOSS, loss, first + i)
        writer.add_scalar(STEP_TIME, step_s, first + i)
    writer.close()
    record = folder / RECORD
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"spec": _plain(asdict(spec)), "world_size": world, "device": "cpu"}))
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


def test_a_folder_of_runs_and_a_folder_of_none(tmp_path: Path, spec: Spec) -> None:
    _write(tmp_path / "x" / "a", _curve(0, 20), 0.5, spec)
    _write(tmp_path / "x" / "b", _curve(1, 20), 0.5, spec)
    assert [p.name for p in find_runs(tmp_path / "x")] == ["a", "b"]
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


def test_smoothing_keeps_a_constant() -> None:
    assert smooth(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
