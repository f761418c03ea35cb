"""Hand a prepared launch to its executor: the run itself, the job that exports its weights, the test of every rank."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from slipway import configs
from slipway.configs import Refusal
from slipway.launch.doctor.sniff import Rank
from slipway.launch.executors.prepare import prepare, spread, with_accelerator
from slipway.launch.executors.protocol import Launch, Submission
from slipway.launch.executors.select import executor_named
from slipway.launch.executors.submissions import log_folder
from slipway.launch.terminal import captured
from slipway.recipes.factory import absolute

__all__ = [
    "Launch",
    "follow",
    "log_folder",
    "prepare",
    "render",
    "render_weights",
    "sniff",
    "spread",
    "submit",
    "submit_weights",
]


def render(launch: Launch, after: str = "") -> str:
    """The exact script that :func:`submit` would submit."""
    return executor_named(launch.spec.cluster.executor).render(launch, after)


def submit(launch: Launch, after: str = "") -> str:
    """Start or queue a run; returns the scheduler's job number, or an empty string for a run in the foreground.

    Raises:
        Refusal: the cluster does not accept it.
    """
    return executor_named(launch.spec.cluster.executor).submit(launch, after).job


def follow(job: str, folder: Path, executor: str = "slurm") -> str:
    """Print the log of a submitted job until it ends; returns its final state."""
    return executor_named(executor).follow(Submission(job, folder))


def submit_weights(launch: Launch, job: str, out: str) -> str:
    """Queue a job of one rank that exports the run's weights once ``job`` has succeeded; returns its number."""
    return submit(_of_weights(launch, out), job)


def render_weights(launch: Launch, out: str) -> str:
    """The script of the job that exports the run's weights, without the number of the job that it waits for."""
    return render(_of_weights(launch, out))


def _of_weights(launch: Launch, out: str) -> Launch:
    import nemo_run as run

    from slipway.launch.weights.to_hugging_face import export_run

    cluster = replace(launch.spec.cluster, array="", retries=0)
    layout = replace(launch.spec.layout, tp=1, cp=1)  # the rank's environment depends on them
    spec = replace(launch.spec, name=f"{launch.spec.name}-weights", gpus=1, layout=layout, cluster=cluster)
    task = run.Partial(export_run, run_dir=str(launch.run_dir), out=str(Path(out).resolve()))
    return replace(launch, spec=spec, task=task, recorded=False)


def sniff(name: str, overrides: list[str]) -> list[Rank]:
    """Measure every rank that the recipe would use, on the same executor, and wait for the result.

    Raises:
        Refusal: the cluster does not accept the job, or the ranks did not finish.
    """
    from slipway.launch.doctor import sniff as measure

    spec = absolute(configs.load(name, overrides).spec)
    spec = with_accelerator(replace(spec, name="sniff", cluster=replace(spec.cluster, array="", retries=0)))
    if executor_named(spec.cluster.executor).runs_here:
        log = _sniff_here(spec.gpus)
    else:
        import nemo_run as run

        log = _sniff_there(Launch(spec, {}, "", allow_dirty=True, task=run.Partial(measure.sniff), recorded=False))
    ranks = measure.read(log)
    if not ranks:
        raise Refusal(
            f"the ranks did not finish: {log.strip().splitlines()[-1] if log.strip() else 'no log'}",
            "Read its log above, or run slipway doctor.",
        )
    return ranks


def _sniff_here(ranks: int) -> str:
    """Everything that the ranks print, run by torchrun on this machine."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    words = [*torchrun, "-m", "slipway.launch.doctor.sniff"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _sniff_there(launch: Launch) -> str:
    """Everything that the ranks print, run as a job."""
    executor = executor_named(launch.spec.cluster.executor)
    submission = executor.submit(launch)
    with tempfile.TemporaryFile("w+") as printed, captured(printed):
        executor.follow(submission)
        printed.seek(0)
        return printed.read()
