"""``slipway launch``: a recipe checked, then submitted to a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import Answer, Section, command, recipe_arguments
from slipway.launch.cli.costs import cost_line, run_json, run_line
from slipway.launch.cli.nemo import quiet, require_nemo
from slipway.launch.cli.pinned import pinned_json, pinned_line
from slipway.launch.cli.printing import Terminal, note

if TYPE_CHECKING:
    from slipway.launch.executors.submit import Launch

SUCCEEDED = "COMPLETED"  # SLURM's state of a job whose exit code was 0


@dataclass(frozen=True)
class Rendered(Answer):
    """The scripts that would be submitted."""

    scripts: list[str]

    def as_json(self) -> dict[str, Any]:
        return {"scripts": self.scripts}

    def show(self, terminal: Terminal) -> None:
        for script in self.scripts:
            print(script)  # as it is, to the last character: it may be piped to sbatch


@dataclass(frozen=True)
class Submitted:
    """One run that was handed over: its job number and that of its weights' job, empty where there is none."""

    name: str
    job: str
    weights_job: str
    run_dir: Path
    outlook: str
    log_folder: Path | None
    executor: str
    layout: dict[str, Any]  # the given and the chosen fields of the layout
    run: dict[str, Any]  # its length and its cost


@dataclass(frozen=True)
class Launched(Answer):
    """The runs that were submitted. If ``follow``, the command waits for their jobs."""

    runs: list[Submitted]
    follow: bool

    def as_json(self) -> list[dict[str, Any]]:
        keys = ("name", "job", "weights_job", "run_dir", "outlook")
        return [{key: str(getattr(run, key)) for key in keys} | run.layout | run.run for run in self.runs]

    def show(self, terminal: Terminal) -> None:
        for run in self.runs:
            if run.job:
                print(f"job {run.job}    log: {run.log_folder}    then: slipway report {run.run_dir}", flush=True)

    def conclude(self) -> None:
        if not self.follow:
            return
        from slipway.launch.executors import submit

        states = [submit.follow(run.job, run.log_folder, run.executor) for run in self.runs if run.log_folder]
        if any(state != SUCCEEDED for state in states):
            raise click.exceptions.Exit(1)


@command(Section.RUNNING)
@recipe_arguments
@click.option("--render", is_flag=True, help="Print the sbatch script and submit nothing.")
@click.option("--multirun", "-m", is_flag=True, help="Submit one run for every combination of key=a,b.")
@click.option(
    "--after", default="", metavar="JOBS", help="Start when these SLURM jobs have succeeded: 1234 or 1234:1235."
)
@click.option(
    "--weights",
    default="",
    metavar="FOLDER",
    help="When the run has succeeded, submit a job that writes its weights for Hugging Face into this folder.",
)
@click.option("--follow", is_flag=True, help="Wait for the job, print its log, and exit with 1 if it fails.")
@click.option("--allow-dirty", is_flag=True, help="Launch the last commit although files differ from it.")
def launch(
    name: str,
    overrides: tuple[str, ...],
    render: bool,
    multirun: bool,
    after: str,
    weights: str,
    follow: bool,
    allow_dirty: bool,
) -> Answer:
    """Check a recipe, then submit it to a cluster.

    For example: slipway launch llama3_8b cluster=site.yaml nodes=4 run.dir=/data/runs
    """
    require_nemo("launch")
    with quiet():
        from slipway.launch.executors import submit

    given = list(overrides)
    variants = submit.spread(given) if multirun else [("", given)]
    with quiet():
        ready = [
            submit.prepare(name, chosen, suffix=suffix, allow_dirty=allow_dirty or render)
            for suffix, chosen in variants
        ]
    if weights and (len(ready) > 1 or ready[0].spec.cluster.executor != "slurm"):
        from slipway.configs import Refusal

        raise Refusal("--weights is for one run on SLURM", "Afterwards: slipway weights export RUN --out FOLDER.")
    if render:
        for one in ready:
            note(f"{one.spec.name}: {one.outlook}")
        scripts = [submit.render(one, after) for one in ready]
        return Rendered([*scripts, submit.render_weights(ready[0], weights)] if weights else scripts)
    return Launched(_submit_all(ready, after, weights), follow)


def _submit_all(ready: list[Launch], after: str, weights: str) -> list[Submitted]:
    """Submit runs that have all been checked. If one is refused, print the jobs that were submitted before it."""
    submitted: list[Submitted] = []
    try:
        for one in ready:
            submitted.append(_submit(one, after, weights))
    except BaseException:
        for run in submitted:
            note(f"already submitted: {run.name} as job {run.job}")
        raise
    return submitted


def _submit(ready: Launch, after: str, weights: str) -> Submitted:
    from slipway import planner
    from slipway.launch.cli.training_data import training_data
    from slipway.launch.executors import submit
    from slipway.planner.calibration import calibration_for
    from slipway.planner.layout import describe

    spec = ready.spec
    data = training_data(spec)
    where = f"{spec.num_nodes} x {min(spec.gpus, spec.gpus_per_node)} on {spec.cluster.name}"
    note(f"{spec.name}: {where}, {describe(spec)}; data: {data.describe()}; {ready.outlook}")
    layout: dict[str, Any] = {}
    if resolved := ready.resolved:
        layout = pinned_json(resolved)
        if resolved.pinned:
            note(f"given: {pinned_line(resolved.spec.layout, resolved.pinned, searched=not resolved.layout_given)}")
    length: dict[str, Any] = {}
    if spec.cluster.accelerator == "gpu":
        length, run = run_json(spec), planner.course(spec)
        note(f"run: {run_line(run)} by {calibration_for(spec).name}; {cost_line(planner.cost(spec, run))}")
    for message, fix in data.warnings:
        note(f"warning: {message}. {fix}")
    job = submit.submit(ready, after)
    weights_job = submit.submit_weights(ready, job, weights) if weights else ""
    log_folder = submit.log_folder(ready) if job else None
    return Submitted(
        spec.name, job, weights_job, ready.run_dir, ready.outlook, log_folder, spec.cluster.executor, layout, length
    )
