"""Ranks on the nodes of a SLURM cluster, queued with sbatch from its login node."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import nemo_run as run

from slipway.configs import Refusal, Spec
from slipway.launch.executors.experiment import experiment, rendered
from slipway.launch.executors.packaging import packager
from slipway.launch.executors.protocol import Executor, Launch, Submission
from slipway.launch.executors.rank_environment import environment, mounts
from slipway.launch.executors.slurm.errors import ask_slurm, explain, require_sbatch
from slipway.launch.executors.slurm.jobs import follow
from slipway.launch.executors.slurm.script import setup_lines
from slipway.launch.executors.submissions import record

RENDEZVOUS_PORT = 29500


class Slurm:
    """NeMo-Run's SlurmExecutor."""

    runs_here = False
    falls_back_to_cpu = False

    def validate(self, spec: Spec) -> None:
        """Whether the cluster has the nodes is for SLURM to say: see :func:`.slurm.errors.ask_slurm`."""

    def nemo_run_executor(self, spec: Spec) -> run.SlurmExecutor:
        cluster = spec.cluster
        ranks = min(spec.gpus, spec.gpus_per_node)
        more = {key.replace("-", "_"): str(value) for key, value in cluster.sbatch.items()}
        if "segment" in more:  # a block of nodes cannot be larger than the job
            more["segment"] = str(min(int(more["segment"]), spec.num_nodes))
        gpus = cluster.accelerator != "cpu"
        executor = run.SlurmExecutor(
            account=cluster.account or None,
            partition=cluster.partition or None,
            time=cluster.time,
            nodes=spec.num_nodes,
            ntasks_per_node=ranks,
            gres=cluster.gres or None,
            gpus_per_node=ranks if gpus and not cluster.gres else None,
            exclusive=True if cluster.exclusive else None,
            array=cluster.array or None,
            additional_parameters=more or None,
            container_image=shlex.quote(cluster.container_image) if cluster.container_image else None,
            container_mounts=[shlex.quote(m) for m in mounts(spec)] if cluster.container_image else [],
            env_vars={key: shlex.quote(value) for key, value in environment(spec).items()},
            setup_lines=setup_lines(spec),
            job_name_prefix="slipway.",
            launcher=run.Torchrun(rdzv_port=RENDEZVOUS_PORT),
            packager=run.Packager(),
            tunnel=run.LocalTunnel(job_dir=""),
        )
        executor.retries = cluster.retries
        return executor

    def render(self, launch: Launch, after: str = "") -> str:
        with experiment(launch, self._executor_of(launch, after), explain) as opened:
            return rendered(opened)

    def submit(self, launch: Launch, after: str = "") -> Submission:
        require_sbatch(launch.spec)
        ask_slurm(self.render(launch, after), launch.spec)
        Path(launch.spec.run.dir).mkdir(parents=True, exist_ok=True)  # pyxis mounts only folders that exist
        with experiment(launch, self._executor_of(launch, after), explain) as opened:
            opened.run(detach=True, tail_logs=False)
            folder, handle = Path(opened._exp_dir), opened.jobs[0].handle
        job = re.search(r"/(\d+)", handle.partition("://")[2])
        if job is None:
            raise Refusal(f"sbatch gave no job number for {launch.spec.name}, but {handle!r}")
        if not launch.spec.cluster.requeue:  # NeMo-Run always submits with --requeue
            subprocess.run(["scontrol", "update", f"jobid={job[1]}", "requeue=0"], capture_output=True, check=False)
        submission = Submission(job[1], folder)
        record(launch, submission)
        return submission

    def follow(self, submission: Submission) -> str:
        return follow(submission.job, submission.folder)

    def _executor_of(self, launch: Launch, after: str) -> run.SlurmExecutor:
        """The launch's executor, with the committed code and, if given, the jobs that it waits for."""
        executor = self.nemo_run_executor(launch.spec)
        executor.packager = packager(check=not launch.allow_dirty)
        if after:
            if not re.fullmatch(r"\d+(:\d+)*", after):
                raise Refusal(f"--after {after!r} is not a job number", "Write --after 1234 or --after 1234:1235.")
            executor.additional_parameters = (executor.additional_parameters or {}) | {
                "dependency": f"afterok:{after}",
                "kill_on_invalid_dep": "yes",  # else a job that waits for a failed one stays in the queue forever
            }
        return executor


EXECUTOR: Executor = Slurm()
