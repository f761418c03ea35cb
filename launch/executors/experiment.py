"""One launch as a NeMo-Run experiment of one task: rendered, submitted, or run in the foreground."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slipway.configs import Refusal, Spec
from slipway.launch.executors.protocol import Launch, Submission
from slipway.launch.executors.restarts import Restarts
from slipway.launch.executors.submissions import record
from slipway.launch.terminal import captured
from slipway.recipes.runtime.run_files import OWNER
from slipway.recipes.runtime.warden import started

if TYPE_CHECKING:
    import nemo_run as run


def task_name(spec: Spec) -> str:
    """The run's name as a word that is safe, unquoted, in a script and a path; dots would confuse NeMo-Run's status."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", spec.name).strip("_-") or "run"


def task_of(launch: Launch) -> Any:
    """What every rank of a launch calls, as a ``run.Partial``."""
    from slipway.recipes import build as builder

    return launch.task or builder.build(launch.spec, cpu=launch.spec.cluster.accelerator == "cpu")


@contextlib.contextmanager
def experiment(launch: Launch, executor: run.Executor, explain: Callable[[str, Spec], Refusal]) -> Iterator[Any]:
    """A NeMo-Run experiment of one task, for an executor that queues it.

    NeMo-Run prints its progress to stdout: that is captured, and ``explain`` gets it together with the error if it
    fails.
    """
    import nemo_run as run
    from nemo_run.config import set_nemorun_home

    task = task_of(launch)
    if launch.spec.cluster.job_dir:
        set_nemorun_home(str(Path(launch.spec.cluster.job_dir).expanduser()))
    with tempfile.TemporaryFile("w+") as printed, captured(printed):
        try:
            name = task_name(launch.spec)
            with run.Experiment(name) as opened:
                opened.add(task, executor=executor, name=name)
                yield opened
        except Refusal:
            raise
        except Exception as error:
            printed.seek(0)
            raise explain(str(error) + "\n" + printed.read(), launch.spec) from error


def rendered(opened: Any) -> str:
    """The sbatch script of an experiment that is not run; its folder is removed again."""
    opened.dryrun(log=False, delete_exp_dir=False)
    folder = Path(opened._exp_dir)
    text = next((path.read_text() for path in folder.glob("*_sbatch.sh")), "")
    shutil.rmtree(folder)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()  # the folder of all experiments of this name, if this was the first
    return text


def run_in_the_foreground(launch: Launch, executor: run.Executor) -> Submission:
    """Run on this machine, with the log on the terminal.

    Raises:
        Refusal: the run did not succeed.
    """
    import nemo_run as run

    task = task_of(launch)
    # torchrun lies beside this Python, and an environment that is not activated does not have it on the path
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ[OWNER] = f"{os.getpid()}:{started(os.getpid())}"  # torchrun has a session of its own, and outlives this
    name = task_name(launch.spec)
    restarts = Restarts(launch.spec, launch.run_dir)
    while True:
        with run.Experiment(name) as opened:
            record(launch, Submission(folder=Path(opened._exp_dir)))
            opened.add(task, executor=executor, name=name)
            opened.run(detach=False, tail_logs=True)
        states = [job.state.name for job in opened.jobs]  # leaving the experiment waits for its jobs
        if states == ["SUCCEEDED"]:
            return Submission()
        why = restarts.reason() if launch.recorded else ""
        if not why:
            raise Refusal(
                f"{launch.spec.name} did not finish: {', '.join(states)}",
                "Its log is above; the same command resumes it.",
            )
        print(f"slipway: {why}: starting again, from the last checkpoint", file=sys.stderr, flush=True)


def refuse_a_script(spec: Spec) -> Refusal:
    """For executors that run in the foreground."""
    return Refusal(f"cluster={spec.cluster.name} submits no script: its executor is {spec.cluster.executor}")


def refuse_to_wait(after: str) -> None:
    """For executors without a queue."""
    if after:
        raise Refusal("--after is for SLURM's jobs", "Use cluster=YOURS.yaml.")
