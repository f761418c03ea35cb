"""The state of a run now: what it does or why it ended, what a restart would lose, and the command that resumes it.

Imports neither torch nor NeMo, and needs no SLURM: what SLURM says is added where its commands are.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from slipway.configs import Refusal, Spec
from slipway.configs.load import spec_from_record
from slipway.launch.diagnosis.classes import Kind
from slipway.launch.diagnosis.diagnose import Diagnosis
from slipway.launch.diagnosis.of_run import diagnose_run
from slipway.launch.diagnosis.sources import last_launch
from slipway.launch.executors.slurm.facts import JobFacts, facts_of
from slipway.launch.executors.submissions import LAUNCHES
from slipway.launch.runs.health import notes
from slipway.launch.runs.outlook import outlook
from slipway.launch.runs.read import CHECKPOINTS, Run, find_runs, is_run, read_run
from slipway.launch.runs.series import LOSS, STEP_TIME, read_tail
from slipway.launch.runs.summary import summarize
from slipway.recipes.runtime.checkpoint_files import Held, held

RECENT_STEPS = 50  # whose median is the step time that the ETA is computed with
_UNFINISHED = "*-unfinished"  # NeMo's marker of a checkpoint that is being written
_SAVING_S = 3600.0  # a marker older than this was left by an interrupted save


class State(Enum):
    """What a run does, or how it ended."""

    queued = "queued"
    starting = "starting"
    running = "running"
    saving = "saving"
    requeued = "requeued"
    stopped = "stopped early"
    failed = "failed"
    finished = "finished"

    @property
    def ended(self) -> bool:
        return self in (State.stopped, State.failed, State.finished)


@dataclass(frozen=True)
class Resume:
    """What the next start in the run's folder will do.

    Attributes:
        possible: training goes on after ``after_step``, which is None for a start from the beginning.
        says: the same in a sentence, or why not.
        command: what to type; empty where nobody recorded it.
        by_itself: SLURM will start the job again without it.
    """

    possible: bool
    after_step: int | None
    says: str
    command: str = ""
    by_itself: bool = False


@dataclass(frozen=True)
class RunStatus:
    """The state of one run. Steps are counted from 0; times are in seconds; None: not known.

    Attributes:
        step: the last step that was logged.
        steps_lost: steps that were trained after the last whole checkpoint, of a run that does not run.
        tokens_per_s, predicted_tokens_per_s: of all ranks; the prediction is that of the recorded recipe.
        culprit: why it failed; None for a run that did not.
        notes: what is wrong although it goes on.
    """

    path: Path
    state: State
    step: int | None
    max_steps: int | None
    eta_s: float | None
    step_time_s: float | None
    tokens_per_s: float | None
    predicted_tokens_per_s: float | None
    job: JobFacts | None
    culprit: Diagnosis | None
    checkpoint: str
    checkpoint_step: int | None
    passed_over: dict[str, str]
    steps_lost: int | None
    resume: Resume | None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name


def find_launched(path: Path) -> list[Path]:
    """The run folders at or below ``path``, those included that wait for their first start.

    Raises:
        Refusal: there is none.
    """
    if is_run(path) or (path / LAUNCHES).is_file():
        return [path]
    found = sorted({*find_runs(path), *(file.parents[1] for file in path.rglob(LAUNCHES))})
    if not found:
        raise Refusal(
            f"{path} holds no run", "Give the folder that holds slipway/recipe.json, or a folder of such folders."
        )
    return found


def status_of(path: Path) -> RunStatus:
    """The state of one run.

    Raises:
        Refusal: the folder holds no run, or its record cannot be read.
    """
    launched = last_launch(path)
    job = facts_of(str(launched["job"])) if launched.get("job") else None
    run = read_run(path, read_tail) if is_run(path) else Run(path, state="")
    spec = run.spec or _spec_of(launched)
    checkpoints = held(path / CHECKPOINTS)
    loss = run.get(LOSS)
    step = int(loss.steps[-1]) if len(loss) else None
    state = _state(run, job, step)
    culprit = diagnose_run(path) if state.ended and state is not State.finished else None
    if state is State.stopped and culprit and culprit.known and culprit.known.kind is not Kind.ending:
        state = State.failed
    step_s = _step_time(run)
    summary = summarize(run) if is_run(path) else None
    per_s = summary.tokens_per_s_per_gpu if summary else None
    predicted_s = summary.predicted_step_time_s if summary else None
    return RunStatus(
        path=path,
        state=state,
        step=step,
        max_steps=spec.run.max_steps if spec else None,
        eta_s=(spec.run.max_steps - 1 - step) * step_s
        if spec and step is not None and step_s and state in (State.running, State.saving)
        else None,
        step_time_s=step_s,
        tokens_per_s=per_s * summary.ranks if per_s and summary else None,
        predicted_tokens_per_s=spec.batch.tokens / predicted_s if predicted_s and spec else None,
        job=job,
        culprit=culprit if culprit and culprit.cause else None,
        checkpoint=checkpoints.newest.name if checkpoints.newest else "",
        checkpoint_step=checkpoints.step if checkpoints.newest else None,
        passed_over=checkpoints.passed_over,
        steps_lost=_steps_lost(state, step, checkpoints),
        resume=_resume(path, spec, state, checkpoints, launched),
        notes=tuple(notes(run)),
    )


def _spec_of(launched: dict[str, object]) -> Spec | None:
    recipe = launched.get("recipe")
    return spec_from_record(recipe) if isinstance(recipe, dict) else None


def _state(run: Run, job: JobFacts | None, step: int | None) -> State:
    done = run.state == "finished"
    if job is not None and (job.waits or job.runs):
        if job.waits:
            return State.requeued if job.attempts or step is not None or run.state == "failed" else State.queued
        return State.saving if _saves(run.path) else State.running if step is not None else State.starting
    if done:
        return State.finished
    if job is None and run.state == "running":
        return State.saving if _saves(run.path) else State.running
    failed = run.state == "failed" or (job is not None and job.failed)
    return State.failed if failed else State.stopped


def _saves(path: Path) -> bool:
    """Whether a checkpoint is being written now."""
    markers = list((path / CHECKPOINTS).glob(_UNFINISHED))
    return any(time.time() - marker.stat().st_mtime < _SAVING_S for marker in markers if marker.exists())


def _step_time(run: Run) -> float | None:
    times = run.of_last_start(STEP_TIME).values[-RECENT_STEPS:]
    return float(np.median(times)) if len(times) else None


def _steps_lost(state: State, step: int | None, checkpoints: Held) -> int | None:
    if step is None or state in (State.running, State.saving, State.finished):
        return None
    return max(0, step - checkpoints.step)


def _resume(
    path: Path, spec: Spec | None, state: State, checkpoints: Held, launched: dict[str, object]
) -> Resume | None:
    """What the next start will do; None for a run that is finished or runs."""
    if spec is None or state is State.finished:
        return None
    try:
        says, possible = outlook(path, spec), True
    except Refusal as refusal:
        says, possible = refusal.sentence(), False
    after = checkpoints.step if possible and checkpoints.newest else None
    return Resume(possible, after, says, command_of(launched), state in (State.queued, State.requeued))


def resume_of(run: Path) -> Resume | None:
    """What the next start in a run's folder will do; None for a run that is finished, or has no record."""
    return status_of(run).resume


def command_of(launched: dict[str, object]) -> str:
    """The command that launched a run, with the change to its folder where that is another; empty if not recorded."""
    command, folder = str(launched.get("command") or ""), str(launched.get("folder") or "")
    if command and folder and Path(folder) != Path.cwd():
        return f"cd {shlex.quote(folder)} && {command}"
    return command


def as_json(status: RunStatus) -> dict[str, object]:
    """A status as plain data."""
    culprit = status.culprit
    known, cause = (culprit.known, culprit.cause) if culprit else (None, None)
    return {
        "name": status.name,
        "path": str(status.path),
        "state": status.state.value,
        "step": status.step,
        "max_steps": status.max_steps,
        "eta_s": status.eta_s,
        "step_time_s": status.step_time_s,
        "tokens_per_s": status.tokens_per_s,
        "predicted_tokens_per_s": status.predicted_tokens_per_s,
        "culprit": None
        if culprit is None or cause is None or known is None
        else {
            "class": known.name,
            "title": known.title,
            "rank": culprit.rank,
            "host": culprit.host or None,
            "signal": culprit.signal or None,
            "step": cause.step,
            "path": str(cause.path),
            "line": cause.number,
            "text": cause.text,
        },
        "slurm": None if status.job is None else vars(status.job),
        "checkpoint": status.checkpoint or None,
        "checkpoint_step": status.checkpoint_step,
        "passed_over": status.passed_over,
        "steps_lost": status.steps_lost,
        "notes": list(status.notes),
        "resume": None if status.resume is None else vars(status.resume),
    }
