"""status: the state of runs by their folders, in a table or alone, and quickly however long a run is."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from slipway import configs
from slipway.launch.cli.commands.status import _look, _show
from slipway.launch.cli.printing import Terminal
from slipway.launch.diagnosis.suspects import suspects
from slipway.launch.executors.submissions import LAUNCHES
from slipway.launch.runs.read import EVENTS
from slipway.launch.runs.series import FILES, LOSS, STEP_TIME, read_events, read_tail
from slipway.launch.runs.status import State, as_json, status_of
from slipway.recipes.runtime.run_files import DATA_TIME, FAILURE
from tests.launch.test_cli import slipway
from tests.launch.written_runs import tiny, write_run

GPU = "NVIDIA H100 80GB HBM3"


def _record_failure(run: Path, **failure: Any) -> None:
    (run / FAILURE).write_text(json.dumps({"step": 20, "rank": 3, "error": "RuntimeError", "message": ""} | failure))


def _old(run: Path) -> None:
    """A run that has logged nothing for an hour."""
    import os

    for file in (run / EVENTS).glob(FILES):
        os.utime(file, (time.time() - 3600,) * 2)


def test_a_run_that_runs_has_an_eta_and_its_speed_beside_the_prediction(tmp_path: Path) -> None:
    spec = replace(tiny(), run=replace(tiny().run, max_steps=1000))
    status = status_of(write_run(tmp_path / "a", np.full(101, 5.0), 0.5, spec, world=8, gpu=GPU))
    assert (status.state, status.step) == (State.running, 100)
    assert status.eta_s == pytest.approx(899 * 0.5)
    assert status.tokens_per_s == pytest.approx(spec.batch.tokens / 0.5)
    assert status.predicted_tokens_per_s and status.predicted_tokens_per_s != status.tokens_per_s
    assert status.culprit is None and status.steps_lost is None
    (tmp_path / "a/checkpoints").mkdir()
    (tmp_path / "a/checkpoints/step=99-unfinished").touch()
    assert status_of(tmp_path / "a").state is State.saving


def test_a_run_that_failed_names_the_culprit_what_is_lost_and_the_command(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", np.full(21, 5.0), 0.5, replace(tiny(), run=replace(tiny().run, max_steps=1000)))
    _record_failure(run, error="OutOfMemoryError", message="CUDA out of memory. Tried to allocate 2.00 GiB.")
    launched = {"job": "", "experiment": "", "command": "slipway launch llama3_tiny name=a", "folder": "/home/me"}
    (run / LAUNCHES).write_text(json.dumps(launched) + "\n")
    status = status_of(run)
    assert status.state is State.failed
    assert status.culprit and status.culprit.known and status.culprit.known.name == "gpu-memory"
    assert (status.culprit.rank, status.steps_lost, status.checkpoint_step) == (3, 21, None)
    assert status.resume and status.resume.possible and status.resume.after_step is None
    assert status.resume.command == "cd /home/me && slipway launch llama3_tiny name=a"
    plain = json.loads(json.dumps(as_json(status)))
    assert plain["culprit"]["rank"] == 3 and plain["resume"]["says"].startswith("starts from step 0")


def test_a_folder_of_runs_is_a_table_of_80_columns(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    spec = replace(tiny(), run=replace(tiny().run, max_steps=21))
    write_run(tmp_path / "done", np.full(21, 5.0), 0.5, spec)
    _old(write_run(tmp_path / "stopped", np.full(11, 5.0), 0.5, spec))
    failed = write_run(tmp_path / "x/failed", np.full(11, 5.0), 0.5, spec)
    _record_failure(failed, message="[brackets] Connection reset by peer")
    monkeypatch.setenv("COLUMNS", "80")
    _show(Terminal(), _look(tmp_path), tmp_path)
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines())
    states = {line.split()[0]: line for line in printed.splitlines() if "/21" in line}
    assert "finished" in states["done"] and "stopped early" in states["stopped"] and "failed" in states["x/failed"]
    rows = json.loads(slipway("status", str(tmp_path), "--json").stdout)
    assert {row["name"]: row["state"] for row in rows} == {
        "done": "finished",
        "stopped": "stopped early",
        "failed": "failed",
    }


def test_watch_looks_again_until_every_run_has_ended(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from slipway.launch.cli.commands import status as command

    run = write_run(tmp_path / "a", np.full(11, 5.0), 0.5, replace(tiny(), run=replace(tiny().run, max_steps=12)))

    def train_on(_: float) -> None:
        write_run(
            tmp_path / "a", np.full(1, 5.0), 0.5, replace(tiny(), run=replace(tiny().run, max_steps=12)), first=11
        )

    monkeypatch.setattr("time.sleep", train_on)
    command.Stated(run, _look(run), watch=True).show(Terminal())
    states = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("state")]
    assert states == ["running,", "finished,"]


def test_explain_and_status_of_what_is_no_run_are_one_sentence() -> None:
    assert "holds no run" in slipway("status", "/no/such", code=2).stderr
    assert "No such file" in slipway("explain", "/no/such.log", code=2).stderr


def test_explain_of_a_run_says_what_a_restart_does(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", np.full(21, 5.0), 0.5, replace(tiny(), run=replace(tiny().run, max_steps=1000)))
    _record_failure(run, message="CUDA error: an illegal memory access was encountered")
    told = json.loads(slipway("explain", str(run), "--json").stdout)
    assert (told["class"], told["rank"], told["step"]) == ("illegal-access", 3, 20)
    assert told["resume"]["possible"] is True
    assert "starts from step 0" in slipway("explain", str(run)).stdout


def test_a_loss_that_is_no_number_and_data_that_come_too_slowly_are_noted(tmp_path: Path) -> None:
    losses = np.full(40, 5.0)
    losses[30:] = np.nan
    run = write_run(tmp_path / "a", losses, 0.5, tiny())
    for name in ("step=19", "step=29", "step=39"):
        (run / "checkpoints" / name).mkdir(parents=True)
    writer = SummaryWriter(str(run / EVENTS))
    for step in range(40):
        writer.add_scalar(LOSS, losses[step], step)
        writer.add_scalar(STEP_TIME, 0.5, step)
        writer.add_scalar(DATA_TIME, 0.3, step)
    writer.close()
    not_a_number, slow = status_of(run).notes
    assert not_a_number == "the loss is not finite since step 30; step=29 is the last checkpoint before it"
    assert slow.startswith("it waits 0.3 s a step for its data, beside 0.5 s of work")


def test_the_suspects_of_a_nan_are_those_settings_that_the_run_has() -> None:
    fp8 = configs.load("llama3_8b", ["gpu=b200", "precision=mxfp8"]).spec
    fp8 = replace(fp8, layout=replace(fp8.layout, overlap_param_gather=True, overlap_grad_reduce=True))
    named = suspects(fp8, 11)
    assert named[0].startswith("mxfp8 with overlapped gathers") and any("precision=bf16" in one for one in named)
    assert named[-1].startswith("the GPU of rank 11")
    plain = replace(fp8, precision=configs.precision("bf16"), layout=replace(fp8.layout, overlap_grad_reduce=False))
    assert not any("fp8" in one or "overlap_grad_reduce" in one for one in suspects(plain, None))


def test_the_tail_of_the_events_is_that_of_all_events_and_a_record_that_is_cut_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", np.linspace(5, 4, 3000), 0.5, tiny())
    whole, tail = read_events(run / EVENTS), read_tail(run / EVENTS)
    steps = tail.series[LOSS].steps
    assert 0 < len(steps) < 3000 and steps[-1] == 2999
    assert np.array_equal(tail.series[LOSS].values, whole.series[LOSS].values[-len(steps) :])
    file = next((run / EVENTS).glob(FILES))
    file.write_bytes(file.read_bytes()[:-10])
    assert read_tail(run / EVENTS).series[LOSS].steps[-1] >= 2998
    assert read_tail(tmp_path).series == {}
