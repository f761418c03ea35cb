"""``slipway status``: what a run does now, or why it ended, and how it goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import Answer, Section, argument, command
from slipway.launch.cli.printing import Style, Table, Terminal

if TYPE_CHECKING:
    from slipway.launch.runs.status import RunStatus

EVERY_S = 5.0  # between two looks of --watch
CLEAR = "\x1b[H\x1b[2J"
LONGEST_SHOWN = 300  # characters of an evidence line; --json has it whole


@dataclass(frozen=True)
class Stated(Answer):
    """The states of the runs at or below a folder."""

    path: Path
    runs: list[RunStatus]
    watch: bool = False

    def as_json(self) -> Any:
        from slipway.launch.runs.status import as_json

        runs = self._until_ended() if self.watch else self.runs
        values = [as_json(status) for status in runs]
        return values if len(values) > 1 else values[0]

    def show(self, terminal: Terminal) -> None:
        _show(terminal, self.runs, self.path)
        while self.watch and not all(status.state.ended for status in self.runs):
            time.sleep(EVERY_S)
            again = Stated(self.path, _look(self.path))
            if terminal.stream.isatty():
                terminal.stream.write(CLEAR)
            _show(terminal, again.runs, self.path)
            terminal.stream.flush()
            if all(status.state.ended for status in again.runs):
                return

    def _until_ended(self) -> list[RunStatus]:
        runs = self.runs
        while not all(status.state.ended for status in runs):
            time.sleep(EVERY_S)
            runs = _look(self.path)
        return runs


@command(Section.RESULTS)
@argument("run", "A run's folder, or a folder of runs.", type=Path)
@click.option("--watch", is_flag=True, help="Look again every few seconds until every run has ended.")
def status(run: Path, watch: bool) -> Answer:
    """Say what a run does now, or why it ended and how it goes on.

    State, step and speed against the prediction; the rank, signal or error that ended it; what SLURM says; the last
    whole checkpoint, the steps lost, whether it will resume, and the command. Of a folder of runs, a table.
    """
    return Stated(run, _look(run), watch)


def _look(path: Path) -> list[RunStatus]:
    """The states of the runs below a folder."""
    from slipway.launch.cli.several import read_each
    from slipway.launch.runs.status import find_launched, status_of

    return read_each(find_launched(path), status_of, path)


def _show(terminal: Terminal, runs: list[RunStatus], root: Path) -> None:
    if len(runs) == 1:
        _show_one(terminal, runs[0])
    else:
        terminal.table(_table(runs, root))


def _show_one(terminal: Terminal, status: RunStatus) -> None:
    from slipway.launch.cli.commands.explain import where

    style = {"failed": Style.BAD, "stopped early": Style.WARNING}.get(status.state.value, Style.GOOD)
    terminal.field("run", f"{status.path}")
    terminal.field("state", f"{status.state.value}{_progress(status)}", style)
    if speed := _speed(status):
        terminal.field("speed", speed)
    culprit = status.culprit
    if culprit and culprit.cause and culprit.known:
        cause, known = culprit.cause, culprit.known
        terminal.field("culprit", f"{known.title} ({known.name}){where(culprit)}", Style.BAD)
        terminal.field("line", f"{cause.path}:{cause.number}")
        terminal.field("", cause.text[:LONGEST_SHOWN])
        terminal.field("do", known.action)
    for one in status.notes:
        terminal.field("note", one, Style.WARNING)
    if status.job:
        terminal.field("slurm", status.job.describe())
    terminal.field("saved", _saved(status))
    _show_resume(terminal, status)


def _show_resume(terminal: Terminal, status: RunStatus) -> None:
    resume = status.resume
    if resume is None or status.state.value in ("running", "saving"):
        return
    by_itself = "; SLURM starts it by itself" if resume.by_itself and resume.possible else ""
    style = Style.GOOD if resume.possible else Style.WARNING
    terminal.field("next", f"{resume.says}{by_itself}", style)
    if resume.command and status.state.ended:
        terminal.field("command", resume.command)


def _progress(status: RunStatus) -> str:
    from slipway.launch.cli.quantities import duration

    if status.step is None:
        return ""
    of = f" of {status.max_steps:,}" if status.max_steps else ""
    eta = f", {duration(status.eta_s)} to go" if status.eta_s is not None else ""
    return f", {status.step + 1:,}{of} steps done{eta}"


def _speed(status: RunStatus) -> str:
    if not status.step_time_s:
        return ""
    text = f"{status.step_time_s:.3g} s per step"
    if status.tokens_per_s:
        text += f", {status.tokens_per_s:,.0f} tokens/s"
    if status.tokens_per_s and status.predicted_tokens_per_s:
        ratio = status.tokens_per_s / status.predicted_tokens_per_s
        text += f", {ratio:.0%} of the {status.predicted_tokens_per_s:,.0f} predicted"
    return text


def _saved(status: RunStatus) -> str:
    text = f"{status.checkpoint} is the last whole checkpoint" if status.checkpoint else "no whole checkpoint"
    if status.steps_lost:
        text += f"; {status.steps_lost:,} step{'s' if status.steps_lost > 1 else ''} after it lost"
    for name, wrong in status.passed_over.items():
        text += f"; {name} {wrong}"
    return text


def _table(runs: list[RunStatus], root: Path) -> Table:
    table = Table(("run", "state", "steps", "tok/s", "saved", "lost", "why"), right=frozenset({2, 3, 4, 5}))
    for status in runs:
        known = status.culprit.known if status.culprit else None
        rank = f" (rank {status.culprit.rank})" if status.culprit and status.culprit.rank is not None else ""
        of = f"/{status.max_steps}" if status.max_steps else ""
        table.add(
            str(status.path.relative_to(root)),
            status.state.value,
            f"{status.step + 1}{of}" if status.step is not None else "",
            f"{status.tokens_per_s:,.0f}" if status.tokens_per_s else "",
            str(status.checkpoint_step) if status.checkpoint else "",
            str(status.steps_lost) if status.steps_lost else "",
            f"{known.title}{rank}" if known else "",
        )
    return table
