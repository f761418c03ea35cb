"""A run that ends leaves nothing behind, says why, and starts once: ranks under torchrun's agent, which are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults import flip, hang_once, nothing, owner, run, toy
from slipway.configs import Refusal
from slipway.configs.schema import DataKind
from slipway.launch.runs.outlook import outlook
from slipway.recipes.runtime.checksums import read_sums, wrong_files
from slipway.recipes.runtime.run_files import FAILURE
from slipway.recipes.runtime.warden import children, stat_of

pytestmark = [pytest.mark.nemo, pytest.mark.slow]


def slow_writers() -> None:
    """Every writer of a checkpoint waits for a minute, so that it is alive when its rank dies."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    write = FileSystemWriterAsync.write_preloaded_data

    def late(*args: Any, **options: Any) -> None:
        time.sleep(60)
        write(*args, **options)

    FileSystemWriterAsync.write_preloaded_data = staticmethod(late)


@pytest.mark.parametrize("who", ["rank 0", "rank 1", "agent"])
def test_what_dies_takes_everything_with_it_and_is_named(tmp_path: Path, who: str) -> None:
    """Checkpoint writers included, which sleep at that moment."""
    with run(toy(tmp_path), slow_writers) as begun:
        begun.wait_until(lambda: list(begun.folder.glob("checkpoints/*-unfinished")))
        begun.wait_until(lambda: any(children(child) for child in children(begun.rank(1))))
        if who == "agent":
            os.kill(begun.pid, signal.SIGKILL)
            begun.end()
            failure = json.loads((begun.folder / FAILURE).read_text())
            assert failure["message"].startswith(f"what started the ranks (process {begun.pid} on "), failure
            return
        number = int(who[-1])
        os.kill(begun.rank(number), signal.SIGSEGV if number else signal.SIGKILL)
        assert begun.end() == 1
        failure = json.loads((begun.folder / FAILURE).read_text())
        assert failure["rank"] == number, begun.text()[-3000:]
        assert failure["error"] == ("was killed by SIGSEGV" if number else "was killed by SIGKILL")
        assert f"slipway: rank {number} on {os.uname().nodename} was killed by" in begun.text()


def test_the_ranks_end_with_the_command_that_they_belong_to(tmp_path: Path) -> None:
    """torchrun has a session of its own, so that neither a hang-up nor a kill of the command reaches it."""
    with owner() as command, run(toy(tmp_path)) as begun:
        begun.wait_until(begun.saved)
        os.kill(command, signal.SIGKILL)
        begun.end()
        assert "the command that started this run is gone" in begun.text()


def test_a_second_start_in_one_folder_is_refused_by_name(tmp_path: Path) -> None:
    """A killed holder does not keep its folder."""
    with run(toy(tmp_path)) as begun:
        begun.wait_until(begun.saved)
        first = begun.rank(0)
        with run(toy(tmp_path), log="second") as second:
            assert second.end(60.0) == 1
            expected = f"{begun.folder} is in use: process {first} on {os.uname().nodename}, since "
            assert expected in second.text(), second.text()[-3000:]
        assert stat_of(first), "the first goes on"
        assert not (begun.folder / FAILURE).exists(), "nothing of the second is in its folder"
        os.kill(first, signal.SIGKILL)
        begun.end()
    with run(toy(tmp_path), log="third") as third:
        third.wait_until(lambda: "resuming from" in third.text())


def test_a_run_whose_folder_is_removed_ends(tmp_path: Path) -> None:
    with run(toy(tmp_path)) as begun:
        begun.wait_until(begun.saved)
        shutil.rmtree(begun.folder)
        assert begun.end(60.0) == 1


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_flipped_bit_is_named_and_an_older_checkpoint_resumes(tmp_path: Path, asynchronous: bool) -> None:
    """Every file has a sum that was written with it; without the check, the flipped bit would load."""
    spec = toy(tmp_path, steps=4)
    spec = replace(spec, run=replace(spec.run, async_save=asynchronous))
    with run(spec) as begun:
        assert begun.end(90.0) == 0, begun.text()[-3000:]
    folder = begun.folder / "checkpoints"
    for name in ("step=1", "step=3"):
        weights = folder / name / "weights"
        files = {each.name for each in weights.iterdir()} - {"SHA256SUMS", "metadata.json"}
        assert read_sums(weights).keys() == files
        assert wrong_files(weights) == {}
    shard = next((folder / "step=3/weights").glob("__1_*.distcp"))
    flip(shard)
    with run(replace(spec, run=replace(spec.run, max_steps=6)), log="again") as again:
        assert again.end(90.0) == 0, again.text()[-3000:]
    said = f"passing over checkpoint step=3: it has {shard.name}, which differs from its SHA-256"
    assert said in again.text()
    assert "step=1, after step 1" in again.text()
    assert sorted(each.name for each in folder.iterdir()) == ["step=1", "step=3", "step=5"], "step 3 is saved again"
    assert len(list((begun.folder / "damaged").glob("step=3-*"))) == 1, "nothing is thrown away"
    for each in folder.iterdir():
        flip(next((each / "weights").glob("__0_*.distcp")))
    with run(replace(spec, run=replace(spec.run, max_steps=8)), log="none") as none:
        assert none.end(90.0) == 1
    assert "can be loaded: step=" in none.text(), none.text()[-3000:]


def late_first_save() -> None:
    """The files of the first checkpoint are written after those of the second, as on a slow disk."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    write = FileSystemWriterAsync.write_preloaded_data

    def late(*args: Any, **options: Any) -> None:
        if "step=1/" in options["write_bucket"][0]:
            time.sleep(4)
        write(*args, **options)

    FileSystemWriterAsync.write_preloaded_data = staticmethod(late)


def test_two_saves_that_overlap_keep_their_own_results(tmp_path: Path) -> None:
    """Megatron-Core 0.15.3 has one queue for the results of all saves: the second's came first, and the index of the
    first checkpoint got them.
    """
    with run(toy(tmp_path, steps=6), late_first_save) as begun:
        assert begun.end(90.0) == 0, begun.text()[-3000:]
    found = {each.name: wrong_files(each / "weights") for each in (begun.folder / "checkpoints").iterdir()}
    assert found == {"step=1": {}, "step=3": {}, "step=5": {}}


def test_other_data_of_the_same_shape_is_refused_at_a_resume(tmp_path: Path) -> None:
    from tests.launch.test_training_data import write_prefix

    prefix = write_prefix(tmp_path / "text", documents=200, length=100, token=1)
    spec = toy(tmp_path / "runs", steps=2)
    spec = replace(spec, data=replace(spec.data, kind=DataKind.indexed, paths=[prefix]))
    with run(spec) as begun:
        assert begun.end(90.0) == 0, begun.text()[-3000:]
    write_prefix(tmp_path / "text", documents=200, length=100, token=2)
    longer = replace(spec, run=replace(spec.run, max_steps=4))
    said = f"{prefix}.bin is not what {begun.folder} has been trained on: its size is the same and its contents differ"
    with run(longer, log="again") as again:
        assert again.end(90.0) == 1
    assert said in again.text(), again.text()[-3000:]
    with pytest.raises(Refusal, match="its size is the same and its contents differ"):
        outlook(begun.folder, longer)
    with run(replace(longer, run=replace(longer.run, accept_changed_data=True)), log="accepted") as accepted:
        assert accepted.end(90.0) == 0, accepted.text()[-3000:]
    assert outlook(begun.folder, replace(longer, run=replace(longer.run, max_steps=6))), "the new data are its data now"


def test_data_that_are_cut_short_while_they_are_read_are_named(tmp_path: Path) -> None:
    """The kernel kills the rank that reads them (SIGBUS), before Python could say anything."""
    from tests.launch.test_training_data import write_prefix

    prefix = write_prefix(tmp_path / "text", documents=200, length=100)
    spec = toy(tmp_path / "runs")
    spec = replace(spec, data=replace(spec.data, kind=DataKind.indexed, paths=[prefix]))
    with run(spec) as begun:
        begun.wait_until(begun.saved)
        os.truncate(f"{prefix}.bin", 0)
        assert begun.end(60.0) == 1
        said = f"{prefix}.bin was cut short while the run read it: 0 of 40,000 bytes are left"
        assert said in begun.text(), begun.text()[-3000:]
        assert json.loads((begun.folder / FAILURE).read_text())["message"] == said


def full_log() -> None:
    """TensorBoard's device is full from the third record on."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, written = RecordWriter.write, []

    def limited(self: Any, data: bytes) -> None:
        written.append(data)
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        write(self, data)

    RecordWriter.write = limited


def test_a_full_device_under_the_log_costs_the_log(tmp_path: Path) -> None:
    with run(toy(tmp_path, steps=6), full_log) as begun:
        assert begun.end(90.0) == 0, begun.text()[-3000:]
    assert begun.text().count("tensorboard cannot be written (No space left on device): training goes on") == 1
    assert (begun.folder / "checkpoints/step=5").is_dir()


def test_a_removed_checkpoint_folder_ends_the_run_at_the_next_save(tmp_path: Path) -> None:
    with run(toy(tmp_path)) as begun:
        begun.wait_until(begun.saved)
        shutil.rmtree(begun.folder / "checkpoints", ignore_errors=True)
        assert begun.end(60.0) == 1
    assert "checkpoints was removed while the run trained" in begun.text(), begun.text()[-3000:]
    assert "was removed while" in json.loads((begun.folder / FAILURE).read_text())["message"]


def test_not_a_number_is_named_with_its_step_and_again_at_the_resume(tmp_path: Path) -> None:
    spec = toy(tmp_path, every=1)
    start = replace(spec, run=replace(spec.run, max_steps=2), optim=replace(spec.optim, decay_steps=10_000))
    with run(start) as begun:
        assert begun.end(90.0) == 0, begun.text()[-3000:]
    wild = replace(start, run=replace(start.run, max_steps=50), optim=replace(start.optim, lr=1e18, min_lr=1e18))
    wild = replace(wild, run=replace(wild.run, extend_schedule=True))
    with run(wild, log="wild") as diverging:
        assert diverging.end(90.0) == 1
    failure = json.loads((begun.folder / FAILURE).read_text())
    step = failure["step"]
    said = f"the loss or a gradient is not a number (NaN or infinite) in step {step}; the last checkpoint before it is "
    assert failure["error"] == "NaN", failure
    assert failure["message"].startswith(said)
    assert f"slipway: {said}" in diverging.text()
    with run(wild, log="again") as again:
        again.wait_until(lambda: f"ended in step {step}, whose loss or gradient was not a number" in again.text())


@pytest.mark.parametrize("how", ["stopped", "stuck"])
def test_a_rank_that_hangs_is_named_and_the_run_goes_on(tmp_path: Path, how: str) -> None:
    """Within the stated time, with the stacks of both ranks; torchrun starts the ranks again, which resume."""
    spec = toy(tmp_path, steps=12)
    spec = replace(spec, run=replace(spec.run, hang_timeout_s=4))
    if how == "stopped":
        spec = replace(spec, run=replace(spec.run, max_steps=10_000))
    with run(spec, hang_once if how == "stuck" else nothing, restarts=1) as begun:
        if how == "stopped":
            begun.wait_until(begun.saved)
            os.kill(begun.rank(1), signal.SIGSTOP)
            begin = time.monotonic()
            begun.wait_until(lambda: "no step for" in begun.text(), 40.0)
            assert time.monotonic() - begin < 20.0, "noticed late"
        begun.wait_until(lambda: begun.text().count("the stacks of rank") == 2)
        if how == "stopped":
            begun.wait_until(lambda: "resuming from" in begun.text())
        host = os.uname().nodename
        said = {
            "stopped": f"rank 1 on {host} is stopped (SIGSTOP) after step",
            "stuck": f"rank 1 on {host} hangs after step",
        }[how]
        assert begun.text().count(f"slipway: {said}") == 2, begun.text()
        if how == "stuck":
            assert "in stuck\n" in begun.text(), "the stack of the rank that hangs"
            assert begun.end(90.0) == 0, begun.text()[-3000:]
