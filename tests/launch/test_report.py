"""report: from real event files, for runs in every state."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slipway import configs, planner
from slipway.configs import Refusal, Spec
from slipway.launch.runs.charts import Chart, Line, render, thinned
from slipway.launch.runs.compare import read_side, write_comparison
from slipway.launch.runs.pictures import smooth
from slipway.launch.runs.read import find_runs, read_run
from slipway.launch.runs.report import write_overview, write_report
from slipway.launch.runs.series import LOSS
from slipway.launch.runs.summary import summarize
from slipway.launch.runs.summary import table as report_table
from slipway.recipes.runtime.run_files import FAILURE
from tests.launch.written_runs import curve, tiny, write_run


@pytest.fixture
def spec() -> Spec:
    return tiny()


def test_a_run_is_read_and_reported(tmp_path: Path, spec: Spec) -> None:
    run = read_run(write_run(tmp_path / "a", curve(0), 0.5, spec))
    s = summarize(run)
    assert (s.steps, s.ranks, s.state, s.layout) == (400, 2, "finished", "TP2")
    assert s.step_time_median_s == pytest.approx(0.5)
    assert s.tokens_per_s_per_gpu == pytest.approx(spec.batch.tokens / 0.5 / 2)
    assert s.mfu is None, "no MFU on a CPU"
    written = write_report(run, s, tmp_path / "out", 6.0)
    assert {p.name for p in written} == {"loss.png", "report.html", "report.json"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert '"title":"Loss (nats per token)"' in page and "unigram entropy of the corpus" in page
    again = write_report(run, s, tmp_path / "out")[1].read_text()
    assert "unigram entropy of the corpus" in again, "the line stays where a later report does not name it"
    assert not re.findall(r"(?:src|href)=.?https?://", page), "self-contained"


def test_a_resumed_run_counts_each_step_once(tmp_path: Path, spec: Spec) -> None:
    write_run(tmp_path / "a", np.full(10, 5.0), 0.5, spec)
    run = read_run(write_run(tmp_path / "a", np.full(10, 4.0), 0.5, spec, first=6))
    loss = run.get(LOSS)
    assert list(loss.steps) == list(range(16))
    assert list(loss.values[:6]) == [5.0] * 6 and list(loss.values[6:]) == [4.0] * 10
    assert run.state != "finished"
    assert (run.events.started_at, run.events.repeated_steps) == ((0, 6), 4)
    rows = dict(report_table(summarize(run)))
    assert rows["steps trained again after a restart"] == "4"


def test_speed_and_memory_are_those_of_the_last_start(tmp_path: Path, spec: Spec) -> None:
    """It may have had another number of ranks and another layout; the record describes it."""
    write_run(tmp_path / "a", np.full(20, 5.0), 0.5, spec, gpu="NVIDIA H200", gib=70.0)
    run = read_run(
        write_run(tmp_path / "a", np.full(10, 4.0), 0.2, spec, first=20, world=4, gpu="NVIDIA H200", gib=40.0)
    )
    s = summarize(run)
    assert (s.starts, s.ranks) == (2, 4)
    assert s.step_time_median_s == pytest.approx(0.2)
    assert s.peak_memory_gib == pytest.approx(40.0)
    assert s.tokens_per_s_per_gpu == pytest.approx(spec.batch.tokens / 0.2 / 4)
    assert len(run.of_last_start(LOSS, 3)) == 7
    assert len(run.of_last_start(LOSS, 30)) == 10, "fewer than the warm-up: all of them"


def test_speed_and_prediction_inside_a_ramp_are_those_of_its_batch(tmp_path: Path) -> None:
    base = configs.load("llama3_tiny", ["precision=bf16", "layout.gbs=64"]).spec
    ramped = replace(base, optim=replace(base.optim, batch_ramp=["16 until 1000 steps"]))
    small = replace(base, layout=replace(base.layout, gbs=16))
    run = read_run(write_run(tmp_path / "a", curve(0), 0.5, ramped, gpu="NVIDIA H100 80GB HBM3"))
    s = summarize(run)
    assert s.tokens_per_s_per_gpu == pytest.approx(small.batch.tokens / 0.5 / 2)
    assert s.predicted_step_time_s == pytest.approx(planner.step_time(small).step_time_s)
    later = replace(base, optim=replace(base.optim, batch_ramp=["16 until 300 steps"]))
    after = summarize(read_run(write_run(tmp_path / "b", curve(0), 0.5, later, gpu="NVIDIA H100 80GB HBM3")))
    assert after.tokens_per_s_per_gpu == pytest.approx(base.batch.tokens / 0.5 / 2)


def test_a_run_on_a_gpu_is_compared_with_the_prediction_for_that_gpu(tmp_path: Path) -> None:
    """The run was planned for an H100 and ran on an H200. A GPU that is not in configs/gpu has no prediction."""
    spec = planner.complete(configs.load("llama3_8b", ["gpus=8", "layout.tp=2", "layout.gbs=64"]))
    on_h200 = replace(spec, gpu=configs.gpu("h200"))
    predicted = planner.check(on_h200)
    assert predicted.time and predicted.memory
    step_s, gib = 1.1 * predicted.time.step_time_s, predicted.memory.peak_gib / 1.2
    s = summarize(read_run(write_run(tmp_path / "a", curve(0, 20), step_s, spec, world=8, gpu="NVIDIA H200", gib=gib)))
    assert s.gpu == "h200"
    assert s.step_time_error == pytest.approx(1 / 1.1 - 1, abs=1e-4)
    assert s.peak_memory_error == pytest.approx(0.2, abs=1e-4)
    assert s.mfu == pytest.approx(predicted.time.mfu / 1.1, rel=1e-3)
    other = summarize(
        read_run(write_run(tmp_path / "b", curve(0, 20), step_s, spec, world=8, gpu="NVIDIA H100 PCIe", gib=gib))
    )
    assert other.gpu == "NVIDIA H100 PCIe"
    assert (other.mfu, other.predicted_step_time_s, other.peak_memory_error) == (None, None, None)
    assert other.model_tflops_per_gpu == pytest.approx(s.model_tflops_per_gpu)


def test_a_failed_run_reports_the_reason(tmp_path: Path, spec: Spec) -> None:
    folder = write_run(tmp_path / "a", curve(0, 20), 0.5, spec)
    failure = {"step": 20, "rank": 3, "error": "OutOfMemoryError", "message": "Tried to allocate 2 GiB"}
    (folder / FAILURE).write_text(json.dumps(failure))
    run = read_run(folder)
    assert run.state == "failed"
    assert (
        dict(report_table(summarize(run)))["failed"]
        == "in step 20, on rank 3: OutOfMemoryError: Tried to allocate 2 GiB"
    )
    (tmp_path / "b/slipway").mkdir(parents=True)
    (tmp_path / "b" / FAILURE).write_text(json.dumps(failure | {"step": 0}))
    assert find_runs(tmp_path) == [tmp_path / "a", tmp_path / "b"], "also a run that failed before it wrote a record"
    assert summarize(read_run(tmp_path / "b")).state == "failed"


def test_a_folder_of_runs_and_a_folder_without_any(tmp_path: Path, spec: Spec) -> None:
    write_run(tmp_path / "x" / "a", curve(0, 20), 0.5, spec)
    write_run(tmp_path / "x" / "b", curve(1, 20), 0.5, spec)
    assert [p.name for p in find_runs(tmp_path / "x")] == ["a", "b"]
    runs = [read_run(p) for p in find_runs(tmp_path / "x")]
    summaries = [summarize(run) for run in runs]
    pages = [write_report(run, one, run.path)[1] for run, one in zip(runs, summaries, strict=True)]
    png, page, data = write_overview(runs, summaries, pages, tmp_path / "x")
    assert png.stat().st_size > 10_000
    for link in re.findall(r'<a href="([^"]*)"', page.read_text()):
        assert (page.parent / link).is_file()
    assert page.read_text().count("<a href=") == 2
    assert [r["name"] for r in json.loads(data.read_text())] == ["a", "b"]
    with pytest.raises(Refusal, match="holds no run"):
        read_run(tmp_path)


def test_a_loss_that_is_not_finite_is_reported(tmp_path: Path, spec: Spec) -> None:
    losses = curve(0, 40)
    losses[30:] = np.nan
    broken = read_run(write_run(tmp_path / "broken", losses, 0.5, spec))
    assert dict(report_table(summarize(broken)))["final loss (mean of last 10)"] == "nan"
    data = write_report(broken, summarize(broken), tmp_path / "out")[2]
    assert json.loads(data.read_text(), parse_constant=pytest.fail)["final_loss"] is None


def test_smoothing_preserves_a_line_and_halves_the_noise() -> None:
    line = np.linspace(3.0, 1.0, 50)
    assert smooth(line) == pytest.approx(line), "also at the end"
    noise = np.random.default_rng(0).normal(0, 0.1, 50)
    assert np.abs(smooth(noise)).mean() < np.abs(noise).mean() / 2
    assert len(smooth(np.zeros(0))) == 0


def test_thinning_keeps_the_extremes_and_the_gaps() -> None:
    values = np.random.default_rng(0).normal(0, 1, 200_000)
    values[77_777], values[123_456], values[-1], values[5] = 50.0, -50.0, 7.0, np.nan
    x, y = thinned(np.arange(200_000), values)
    assert len(x) <= 2 * 2000 and (np.diff(x) > 0).all()
    assert np.nanmax(y) == 50.0 and np.nanmin(y) == -50.0 and y[-1] == 7.0 and np.isnan(y).any()
    page = render([Chart(str(i), [Line("a", np.arange(200_000), values)]) for i in range(6)])
    assert len(page) < 500_000, "the page of a long run stays small"


def test_names_and_errors_are_text_on_a_page(tmp_path: Path, spec: Spec) -> None:
    """HTML in a run's name, its recipe or its failure is shown, and neither read as HTML nor as the script's end."""
    evil = "<img src=x onerror=alert(1)>"
    for i in range(2):
        folder = write_run(tmp_path / f"</script>{evil}{i}".replace("/", "|"), curve(i, 20), 0.5, spec)
        failure = {"step": 3, "rank": 1, "error": "ValueError", "message": f"</script>{evil} [/bold]"}
        (folder / FAILURE).write_text(json.dumps(failure))
    runs = [read_run(path) for path in find_runs(tmp_path)]
    summaries = [summarize(run) for run in runs]
    written = [path for run, one in zip(runs, summaries, strict=True) for path in write_report(run, one, run.path)]
    written += write_overview(runs, summaries, [run.path / "report.html" for run in runs], tmp_path)
    a, b = (read_side(str(run.path)) for run in runs)
    written += write_comparison(a, b, tmp_path / "compare")[1]
    pages = [path.read_text() for path in written if path.suffix == ".html"]
    assert len(pages) == 4
    for page in pages:
        assert "<img" not in page and page.count("</script") == page.count("<script")
    assert "&lt;/script&gt;" in pages[0] and "[/bold]" in pages[0]


def test_checkpoints_that_are_kept_are_counted_once_and_only_finished_ones(tmp_path: Path, spec: Spec) -> None:
    folder = write_run(tmp_path / "a", curve(0, 20), 0.5, spec)
    for name in ("x--step=9", "x--step=19", "x--step=19-last", "x--step=29-last", "x--step=39"):
        (folder / "checkpoints" / name).mkdir(parents=True)
    (folder / "checkpoints/x--step=39-unfinished").touch()
    assert summarize(read_run(folder)).checkpoints == 3


def test_small_sizes_are_in_mib(tmp_path: Path, spec: Spec) -> None:
    run = read_run(write_run(tmp_path / "a", curve(0, 20), 0.5, spec, gpu="NVIDIA H200", gib=0.01))
    assert dict(report_table(summarize(run)))["peak memory"] == "10.2 MiB"
