"""explain reads what torch's flight recorder writes: real ranks over Gloo, one of which does not enter a collective."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from slipway.configs import Refusal
from slipway.launch.diagnosis.diagnose import diagnose
from slipway.launch.diagnosis.flight_recorder import desync_in

RANKS = 3
PROGRAM = """
import datetime, multiprocessing, os, sys, time
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _dump_fr_trace

def run(rank):
    wait, store = datetime.timedelta(seconds=2), f"file://{sys.argv[1]}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=3, timeout=wait)
    tensor = torch.ones(4)
    for _ in range(5):
        dist.all_reduce(tensor)
    try:
        dist.all_reduce(tensor) if rank != 1 else time.sleep(3)
    except RuntimeError:
        pass
    with open(f"{sys.argv[1]}/nccl_trace_rank_{rank}", "wb") as f:
        f.write(_dump_fr_trace())
    os._exit(0)

ranks = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(3)]
[rank.start() for rank in ranks]
[rank.join() for rank in ranks]
"""


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("dumps")
    program = folder / "train.py"
    program.write_text(PROGRAM)
    environment = {"PATH": "/usr/bin:/bin", "TORCH_FR_BUFFER_SIZE": "100", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, str(program), str(folder)], env=environment, capture_output=True, text=True, timeout=120
    )
    found = sorted(folder.glob("nccl_trace_rank_*"))
    assert len(found) == RANKS, done.stderr
    return found


def test_the_rank_that_did_not_enter_is_named_with_the_call_that_the_others_wait_in(dumps: list[Path]) -> None:
    found = desync_in(dumps)
    assert found
    assert (found.behind, found.waiting, found.silent, found.sequence) == ((1,), (0, 2), (), 6)
    assert found.call.name == "gloo:all_reduce"
    assert found.call.caller.endswith("(run)") and "train.py:" in found.call.caller
    told = diagnose([], desync=found)
    assert told.known and (told.known.name, told.rank) == ("collective-timeout", 1)


def test_a_rank_without_a_dump_is_missing_and_equal_ranks_are_not(dumps: list[Path], tmp_path: Path) -> None:
    silent = desync_in([dumps[0], dumps[2]])
    assert silent and silent.missing == (1,)
    same = tmp_path / "nccl_trace_rank_1"
    same.write_bytes(dumps[0].read_bytes())
    assert desync_in([dumps[0], same, dumps[2]]) is None


def test_a_rank_that_called_something_else_is_named(dumps: list[Path], tmp_path: Path) -> None:
    other = pickle.loads(dumps[0].read_bytes())
    other["entries"][-1]["input_sizes"] = [[1025]]
    changed = tmp_path / "nccl_trace_rank_1"
    changed.write_bytes(pickle.dumps(other))
    found = desync_in([dumps[0], changed, dumps[2]])
    assert found and found.missing == (1,)
    assert "rank 1 called gloo:all_reduce with input [[1025]] instead" in found.sentence()


def test_a_dump_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    for content in (pickle.dumps(Evil()), b"nonsense", pickle.dumps({"entries": [1]}), pickle.dumps(json.dumps({}))):
        path = tmp_path / "nccl_trace_rank_0"
        path.write_bytes(content)
        with pytest.raises(Refusal, match="is no dump of torch's flight recorder"):
            desync_in([path])
    assert not (tmp_path / "ran").exists()
