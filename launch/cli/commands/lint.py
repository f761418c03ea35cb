"""``slipway lint``: every recipe and script of a repository, for its CI."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import Answer, Section, argument, command, settings_option
from slipway.launch.cli.printing import Terminal

if TYPE_CHECKING:
    from slipway.launch.lint.judge import Problem, Run, Wanted

FORMATS = ("text", "github", "sarif", "markdown")


@dataclass(frozen=True)
class Linted(Answer):
    """The problems of the files, and what was judged."""

    problems: list[Problem]
    files: int
    runs: int
    form: str

    @property
    def failed(self) -> bool:
        from slipway.launch.lint.judge import Level

        return any(problem.new and problem.level is Level.error for problem in self.problems)

    def as_json(self) -> dict[str, Any]:
        return {
            "files": self.files,
            "runs": self.runs,
            "failed": self.failed,
            "problems": [
                {
                    "path": each.path,
                    "line": each.line,
                    "gpu": each.gpu,
                    "rule": each.rule,
                    "level": each.level.value,
                    "message": each.message,
                    "new": each.new,
                }
                for each in self.problems
            ],
        }

    def show(self, terminal: Terminal) -> None:
        from importlib.metadata import version

        from slipway.launch.lint import formats

        line = formats.summary(self.files, self.runs, self.problems)
        if self.form == "sarif":
            lines = formats.sarif(self.problems, version("nemo-slipway")).splitlines()
        elif self.form == "markdown":
            lines = formats.markdown(line, self.problems)
        elif self.form == "github":
            lines = [*formats.github(self.problems), line]
        else:
            lines = [*formats.text(self.problems), line]
        terminal.wraps = False  # programs read each of these formats
        for each in lines:
            terminal.line(each)

    def conclude(self) -> None:
        if self.failed:
            raise click.exceptions.Exit(1)


@command(Section.PLANNING)
@argument("paths", "Files and folders of a checkout.", nargs=-1, required=True, metavar="PATHS...", type=Path)
@click.option("--against", metavar="REV", help="Compare with this revision: only what is new since then fails.")
@click.option("--gpu", "gpus", default="", metavar="LIST", help="Judge for these GPUs too, for example h200,b200.")
@settings_option
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True, help="How to print.")
def lint(paths: tuple[Path, ...], against: str | None, gpus: str, settings: tuple[str, ...], form: str) -> Answer:
    """Judge every recipe and script below some paths.

    A file is judged for the GPU that it names: whether it is legal and fits. With --against, also whether it became
    slower by 6 % and whether its virtual pipeline changed without being set. Exits with 1 if there is a new problem.
    """
    from slipway import configs
    from slipway.launch.cli.readable import values_of
    from slipway.launch.lint.compare import at_revision, compared
    from slipway.launch.lint.files import found_in
    from slipway.launch.lint.judge import Wanted

    wanted = [gpu for gpu in gpus.split(",") if gpu]
    for gpu in wanted:
        configs.gpu(gpu)
    values = values_of(settings)
    files = [Wanted(path, str(path), named, values) for path, named in found_in(paths)]
    now = _runs(files, wanted)
    if against is None:
        problems = compared(now, [])
    else:
        with at_revision(against, paths) as (root, folder):
            then = [replace(file, path=folder / file.path.resolve().relative_to(root.resolve())) for file in files]
            problems = compared(now, _runs([file for file in then if file.path.is_file()], wanted))
    return Linted(problems, len({run.path for run in now}), len(now), form)


def _runs(files: list[Wanted], gpus: list[str]) -> list[Run]:
    from slipway.launch.lint.judge import runs_of

    return [run for file in files for run in runs_of(file, gpus)]
