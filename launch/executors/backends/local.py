"""Ranks on this machine, started by torchrun in the foreground."""

from __future__ import annotations

import nemo_run as run

from slipway.configs import Refusal, Spec
from slipway.launch.executors.experiment import refuse_a_script, refuse_to_wait, run_in_the_foreground
from slipway.launch.executors.protocol import Executor, Launch, Submission
from slipway.launch.executors.rank_environment import environment


class Local:
    """NeMo-Run's LocalExecutor. CPU ranks may pretend to be several nodes."""

    runs_here = True
    falls_back_to_cpu = True

    def validate(self, spec: Spec) -> None:
        if spec.num_nodes > 1 and spec.cluster.accelerator != "cpu":
            raise Refusal(
                f"cluster={spec.cluster.name} is one machine of {spec.gpus_per_node} GPUs, and {spec.name} needs "
                f"{spec.gpus}",
                f"Use gpus={spec.gpus_per_node}.",
            )

    def nemo_run_executor(self, spec: Spec) -> run.LocalExecutor:
        return run.LocalExecutor(
            ntasks_per_node=spec.gpus, launcher=run.Torchrun(), env_vars=environment(spec), packager=run.Packager()
        )

    def render(self, launch: Launch, after: str = "") -> str:
        raise refuse_a_script(launch.spec)

    def submit(self, launch: Launch, after: str = "") -> Submission:
        refuse_to_wait(after)
        return run_in_the_foreground(launch, self.nemo_run_executor(launch.spec))

    def follow(self, submission: Submission) -> str:
        return "COMPLETED"  # submit returns when the run has succeeded


EXECUTOR: Executor = Local()
