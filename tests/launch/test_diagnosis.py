"""explain: the class of each line, the first cause before its echoes, and logs of any size in bounded memory."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from slipway.configs import Refusal
from slipway.launch.diagnosis.classes import Kind, classify, failure_classes
from slipway.launch.diagnosis.diagnose import Diagnosis, diagnose
from slipway.launch.diagnosis.line import parse_line
from slipway.launch.diagnosis.reading import AHEAD_BYTES, BLOCK_BYTES, scan
from slipway.recipes.runtime.run_files import FAILURE

THREADS = yaml.safe_load(Path(__file__).with_name("failure_threads.yaml").read_text())
NAMED = [known for known in failure_classes().values() if known.patterns]

# Of two ranks of llama3_tiny under torchrun, of which rank 0 got SIGKILL.
KILLED = """\
r/0 [default0]:Training epoch 0, iteration 10/39 | lr: 0.0016 | global_step: 10 | reduced_train_loss: 7.665 | \
train_step_timing in s: 1.116
r/0 [default1]:[rank1]: Traceback (most recent call last):
r/0 [default1]:[rank1]:     handle.wait()
r/0 [default1]:[rank1]: RuntimeError: [/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:53953: Connection \
reset by peer. This is typically caused by a remote worker hanging or bugs in the application.
r/0 E1127 05:39:47.033000 7543 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: -9) \
local_rank: 0 (pid: 7566) of binary: /usr/bin/python
r/0 torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
r/0 ============================================================
r/0 nemo_run.core.runners.fdl_runner FAILED
r/0 ------------------------------------------------------------
r/0 Failures:
r/0 [1]:
r/0   time      : 2026-11-27_05:39:47
r/0   host      : n2
r/0   rank      : 1 (local_rank: 1)
r/0   exitcode  : 1 (pid: 7567)
r/0   error_file: <N/A>
r/0   traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
r/0 ------------------------------------------------------------
r/0 Root Cause (first observed failure):
r/0 [0]:
r/0   time      : 2026-11-27_05:39:44
r/0   host      : n1
r/0   rank      : 0 (local_rank: 0)
r/0   exitcode  : -9 (pid: 7566)  (SIGKILL)
r/0   error_file: <N/A>
r/0   traceback : Signal 9 (SIGKILL) received by PID 7566
r/0 ============================================================
"""


def explained(tmp_path: Path, *texts: str) -> Diagnosis:
    scans = []
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.log"
        path.write_text(text)
        scans.append(scan(path))
    return diagnose(scans)


@pytest.mark.parametrize("known", NAMED, ids=lambda known: known.name)
def test_the_example_of_each_class_is_read_from_a_log_and_no_earlier_class_takes_it(tmp_path: Path, known) -> None:  # type: ignore[no-untyped-def]
    found = classify(parse_line(known.example.encode()).message)
    assert found and found[0] is known
    assert explained(tmp_path, f"some line\n{known.example}\n").known is known, "one of the gates is in the line"


@pytest.mark.parametrize("thread", THREADS, ids=lambda thread: thread["url"].removeprefix("https://github.com/"))
def test_what_public_threads_quote_is_explained(tmp_path: Path, thread: dict[str, Any]) -> None:
    found = explained(tmp_path, thread["log"])
    assert found.known and found.known.name == thread["class"]
    assert found.rank == thread.get("rank")
    assert found.witness == thread.get("witness")
    assert found.host == thread.get("host", "")


def test_the_rank_that_was_killed_is_named_and_not_its_neighbour(tmp_path: Path) -> None:
    found = explained(tmp_path, KILLED)
    assert found.known and found.known.name == "killed"
    assert (found.rank, found.host, found.signal) == (0, "n1", "SIGKILL")
    assert found.cause and (found.cause.number, found.cause.step) == (5, 10)
    echoes = {echo.known.name: echo.ranks for echo in found.echoes}
    assert echoes["connection-lost"] == (1,)


def test_a_death_without_a_summary_is_that_of_the_rank_that_says_nothing(tmp_path: Path) -> None:
    lost = "RuntimeError: [1] Read error [127.0.0.1]:1: Connection reset by peer"
    for rank in (0, 1, 3):
        (tmp_path / f"rank{rank}.log").write_text(f"[rank{rank}]: {lost}\n")
    scans = [scan(path) for path in sorted(tmp_path.iterdir())]
    found = diagnose(scans, world=4)
    assert found.known and (found.known.name, found.rank, found.witness) == ("vanished", 2, 0)
    unknown = diagnose(scans[:2], world=4)
    assert unknown.known and (unknown.known.name, unknown.rank) == ("connection-lost", None)


def test_what_was_followed_by_steps_and_what_is_a_warning_did_not_end_the_run(tmp_path: Path) -> None:
    step = "Training epoch 0, iteration {0}/99 | global_step: {0} | reduced_train_loss: 7.6 | x: 1.0\n"
    log = "[NeMo W 2026-11-27 05:39:25 __init__:442] ImportError: cannot import name 'deploy'\n"
    log += "OSError: [Errno 28] No space left on device\n" + "".join(step.format(i) for i in range(5))
    log += "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
    found = explained(tmp_path, log)
    assert found.known is failure_classes()["gpu-memory"]
    assert found.cause and found.cause.step == 4
    assert explained(tmp_path, log[: log.index("OSError")]).known is failure_classes()["version-mismatch"]


def test_what_follows_the_scheduler_s_ending_is_an_echo_and_what_precedes_it_is_not(tmp_path: Path) -> None:
    limit = "slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 2026-11-27T10:00:00 DUE TO TIME LIMIT ***\n"
    killed = "E1127 10:00:31.000000 1 api.py:1002] failed (exitcode: -9) local_rank: 0 (pid: 7) of binary: python\n"
    assert explained(tmp_path, limit + killed).known is failure_classes()["time-limit"]
    hung = "[2026-11-27 09:20:00] [Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9)\n"
    found = explained(tmp_path, hung + limit + killed)
    assert found.known is failure_classes()["collective-timeout"] and found.witness == 3


def test_srun_cancels_the_step_of_a_rank_that_died_and_that_is_an_echo(tmp_path: Path) -> None:
    """Of two nodes of a real SLURM; the run and its log are called rank."""
    log = """\
E1127 06:51:33.509000 23779 api.py:1002] failed (exitcode: -9) local_rank: 0 (pid: 23834) of binary: python
Root Cause (first observed failure):
[0]:
  time      : 2026-11-27_06:51:33
  host      : n2
  rank      : 1 (local_rank: 0)
  exitcode  : -9 (pid: 23834)  (SIGKILL)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 23834
slurmstepd-n1: error: *** STEP 2.1 ON n1 CANCELLED AT 2026-11-27T06:51:36 ***
torch.distributed.DistNetworkError: Failed to recv, got 0 bytes. Connection was likely closed.
torch.distributed.elastic.multiprocessing.api.SignalException: Process 23777 got signal: 15
"""
    path = tmp_path / "log-slipway.rank_2_0.out"
    path.write_text(log)
    found = diagnose([scan(path)])
    assert found.known is failure_classes()["killed"]
    assert (found.rank, found.host, found.signal) == (1, "n2", "SIGKILL")


def test_a_line_is_found_wherever_the_blocks_of_a_large_log_end(tmp_path: Path) -> None:
    """The line stands across every kind of border, and its number is counted over all blocks."""
    step = b"Training epoch 0, iteration 7/9 | global_step: 7 | reduced_train_loss: 7.6\n"
    wanted = b"[rank5]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
    path = tmp_path / "a.log"
    for border in (BLOCK_BYTES, BLOCK_BYTES - AHEAD_BYTES, BLOCK_BYTES + 4096):
        for shift in (-len(wanted), -20, 0):
            before = step * ((border + shift) // len(step))
            filler = b"x" * (border + shift - len(before) - 1) + b"\n"
            path.write_bytes(before + filler + wanted + step * 100_000)
            found = scan(path)
            at = [(s.known.name, s.rank, s.number) for s in found.sightings]
            assert at == [("gpu-memory", 5, before.count(b"\n") + 2)], (border, shift)
            assert found.lines == before.count(b"\n") + 100_002
            assert found.size == path.stat().st_size


def test_compressed_logs_are_read_and_what_is_no_log_is_refused(tmp_path: Path) -> None:
    packed = tmp_path / "a.log.gz"
    packed.write_bytes(gzip.compress(KILLED.encode()))
    assert diagnose([scan(packed)]).rank == 0
    packed.write_bytes(packed.read_bytes()[:200])
    with pytest.raises(Refusal, match="cannot be read"):
        scan(packed)
    (tmp_path / "weights").write_bytes(b"\0" * 100)
    with pytest.raises(Refusal, match="is not text"):
        scan(tmp_path / "weights")
    with pytest.raises(Refusal, match="No such file"):
        scan(tmp_path / "missing.log")


def test_the_record_of_the_failure_names_the_neighbour_and_the_other_of_two_ranks_is_blamed(tmp_path: Path) -> None:
    from slipway.launch.diagnosis.of_run import diagnose_run, sentence

    record = tmp_path / FAILURE
    record.parent.mkdir()
    message = "Read error [127.0.0.1]:53953: Connection reset by peer"
    record.write_text(json.dumps({"step": 12, "rank": 1, "error": "RuntimeError", "message": message}))
    (tmp_path / "slipway/recipe.json").write_text(json.dumps({"world_size": 2}))
    found = diagnose_run(tmp_path)
    assert (found.rank, found.witness) == (0, 1)
    assert sentence(found) == "in step 12, on rank 0: a rank ended without a word"
    (tmp_path / "slipway/recipe.json").unlink()
    assert sentence(diagnose_run(tmp_path)) == "in step 12, noticed by rank 1: the connection to another rank was lost"


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("slipway: rank 2 on n2 was killed by SIGKILL after step 11", "killed"),
        ("slipway: rank 2 on n2 was killed by SIGSEGV after step 11", "crashed"),
        ("slipway: rank 2 on n2 is stopped (SIGSTOP) after step 11: no step for 600 s", "hang"),
        ("slipway: rank 2 on n2 hangs after step 11: no step for 600 s; it is at a.py:1 (f)", "hang"),
    ],
)
def test_what_a_run_says_of_its_own_ranks_is_explained(tmp_path: Path, said: str, name: str) -> None:
    """The words are those of recipes/runtime/warden.py and hang.py."""
    found = explained(tmp_path, said + "\nRuntimeError: Connection reset by peer\n")
    assert found.known is failure_classes()[name]
    assert found.cause and (found.rank, found.host, found.cause.step) == (2, "n2", 11)


def test_every_class_says_what_it_means_and_what_to_do() -> None:
    for known in failure_classes().values():
        assert known.meaning and known.action.endswith(".") and known.source
    assert {known.kind for known in NAMED} == set(Kind)
