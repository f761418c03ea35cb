"""Which of real ranks under torchrun's agent failed: the one that was killed, not the neighbour that noticed it."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slipway.configs import Spec, load
from slipway.launch.diagnosis.diagnose import diagnose
from slipway.launch.diagnosis.of_run import diagnose_run
from slipway.launch.diagnosis.reading import scan
from slipway.launch.rehearsal.rehearse import seed_after_configure
from slipway.launch.rehearsal.shrink import shrink
from slipway.launch.runs.read import read_run
from slipway.launch.runs.status import State, status_of
from tests.forked import forked

pytestmark = [pytest.mark.nemo, pytest.mark.slow]
DIES_AFTER = 3  # steps; the first checkpoint is that of the second


def _toy(folder: Path) -> Spec:
    toy = shrink(load("llama3_8b", ["layout.tp=2", "gpus=2"]).spec)
    run = replace(
        toy.run, dir=str(folder), max_steps=20, checkpoint_every_n_steps=2, checkpoint_every_minutes=0,
        async_save=False, val_check_interval=0,
    )  # fmt: skip
    layout = replace(toy.layout, gbs=toy.layout.mbs)
    return replace(toy, name="a", run=run, layout=layout)


def _rank(spec: Spec, victim: int, with_signal: int) -> None:
    """One rank's training, in which the victim dies after some steps."""
    import fiddle as fdl
    import lightning.pytorch as pl

    from slipway.recipes.build import build

    rank = int(os.environ["RANK"])

    class Death(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            if rank == victim and trainer.global_step == DIES_AFTER:
                os.killpg(0, with_signal)  # with its data workers, which would hold its connections open

    os.setpgid(0, 0)
    seed_after_configure(spec.run.seed)
    recipe = build(spec, cpu=True)
    built = fdl.build(recipe)
    built.keywords["trainer"].callbacks.append(Death())
    built()


def _under_torchrun(spec: Spec, victim: int, with_signal: int, logs: Path) -> None:
    """What torchrun does, with its own agent, except that ranks are forked from the one import of NeMo."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
        local_addr="localhost",
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL, tee=Std.ALL),
    )
    elastic_launch(config, _rank)(spec, victim, with_signal)


@pytest.mark.parametrize(
    ("victim", "with_signal", "said"),
    [(0, signal.SIGKILL, "killed"), (1, signal.SIGKILL, "killed"), (0, signal.SIGSEGV, "crashed")],
    ids=["rank-0-killed", "rank-1-killed", "rank-0-crashed"],
)
def test_the_culprit_is_the_rank_that_died(tmp_path: Path, victim: int, with_signal: int, said: str) -> None:
    spec, logs = _toy(tmp_path / "runs"), tmp_path / "torchelastic"
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = forked(lambda: _under_torchrun(spec, victim, with_signal, logs), environment=environment, timeout_s=200)
    assert done.code == 1 and "ChildFailedError" in done.stderr, done.stderr[-3000:]
    log = tmp_path / "out.log"
    log.write_text(done.stdout + done.stderr)
    found = diagnose([scan(log)])
    assert found.known and found.known.name == said
    assert (found.rank, found.signal) == (victim, signal.Signals(with_signal).name)

    run = Path(spec.run.dir) / "a"
    status = status_of(run)
    assert status.state is State.failed
    assert (status.step, status.checkpoint_step) == (DIES_AFTER - 1, 1)
    assert status.steps_lost == 1
    assert status.resume and status.resume.possible and status.resume.after_step == 1
    assert status.culprit and status.culprit.rank == victim

    alone = diagnose_run(run)  # of the run's own record, without torchrun's output
    assert alone.known and alone.known.name in (said, "vanished") and alone.rank == victim
    assert f"on rank {victim}" in read_run(run).failure
