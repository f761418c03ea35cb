"""Ranks in one container on this machine, in the foreground."""

from __future__ import annotations

import nemo_run as run

from slipway.configs import Refusal, Spec
from slipway.launch.executors.experiment import refuse_a_script, refuse_to_wait, run_in_the_foreground
from slipway.launch.executors.packaging import packager
from slipway.launch.executors.protocol import Executor, Launch, Submission
from slipway.launch.executors.rank_environment import environment, mounts


class Docker:
    """NeMo-Run's DockerExecutor."""

    runs_here = True
    falls_back_to_cpu = False

    def validate(self, spec: Spec) -> None:
        if spec.num_nodes > 1:
            raise Refusal(
                f"cluster={spec.cluster.name} is one machine of {spec.gpus_per_node} GPUs, and {spec.name} needs "
                f"{spec.gpus}",
                f"Use gpus={spec.gpus_per_node}.",
            )

    def nemo_run_executor(self, spec: Spec) -> run.DockerExecutor:
        gpu = spec.cluster.accelerator != "cpu"
        return run.DockerExecutor(
            container_image=spec.cluster.container_image,
            ntasks_per_node=spec.gpus,
            num_gpus=spec.gpus if gpu else None,
            runtime="nvidia" if gpu else None,
            ipc_mode="host",  # NCCL and the data loaders share memory
            volumes=mounts(spec),
            env_vars=environment(spec),
            launcher=run.Torchrun(),
            packager=run.Packager(),
        )

    def render(self, launch: Launch, after: str = "") -> str:
        raise refuse_a_script(launch.spec)

    def submit(self, launch: Launch, after: str = "") -> Submission:
        refuse_to_wait(after)
        _require_daemon()
        executor = self.nemo_run_executor(launch.spec)
        executor.packager = packager(check=not launch.allow_dirty)
        return run_in_the_foreground(launch, executor)

    def follow(self, submission: Submission) -> str:
        return "COMPLETED"  # submit returns when the run has succeeded


def _require_daemon() -> None:
    try:
        from nemo_run.core.execution.docker import get_client

        get_client().ping()
    except Exception as error:  # no package, no daemon, no permission: the same to the user
        raise Refusal(
            f"no docker daemon answers here ({type(error).__name__})",
            "Start one and pip install docker, or use cluster=local.",
        ) from None


EXECUTOR: Executor = Docker()
