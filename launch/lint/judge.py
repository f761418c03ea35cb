"""One file on one GPU: what it runs, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from slipway import configs, planner
from slipway.configs import Refusal, Resolved
from slipway.launch import foreign
from slipway.launch.cli.readable import judge
from slipway.launch.foreign.reading import NO_RUN, Reading, SameTerms, Terms
from slipway.launch.lint.files import is_recipe, own_folder_of

_LINE = re.compile(r"\(line (\d+)\)| line (\d+):")
_VPP = ("virtual", "vpp", "pipeline-model-parallel-layout", "pipeline_layout")  # in what sets model chunks


class Level(Enum):
    """How bad a problem is: only errors end the command with 1."""

    error = "error"
    warning = "warning"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a file on a GPU."""

    path: str
    gpu: str
    rule: str
    message: str
    level: Level = Level.error
    new: bool = True
    """False: it was there in the revision that the file is compared with."""

    @property
    def line(self) -> int:
        """The line that the message names, else the first."""
        found = _LINE.search(self.message)
        return int(found[1] or found[2]) if found else 1

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same problem in another revision."""
        return self.path, self.gpu, self.rule


@dataclass(frozen=True)
class Run:
    """What a file runs on a GPU; ``tokens_per_s`` per GPU is 0 where it does not run."""

    path: str
    gpu: str
    problems: list[Problem] = field(default_factory=list)
    tokens_per_s: float = 0.0
    vpp: int = 0
    chunks_said: tuple[str, ...] = ()
    """The arguments of the file that set its model chunks."""


@dataclass(frozen=True)
class Wanted:
    """A file to judge.

    Attributes:
        shown: the path as problems show it.
        named: whether the user named it, and not a folder above it.
        settings: values of a script's variables.
    """

    path: Path
    shown: str
    named: bool
    settings: dict[str, str] = field(default_factory=dict)


def runs_of(file: Wanted, gpus: Sequence[str]) -> list[Run]:
    """What a file runs, on the GPU that it names and on ``gpus``; none where it describes no run and was not named."""
    own = _run(file, "")
    runs = [own] if own else []
    if own:
        runs += [run for gpu in gpus if gpu != own.gpu and (run := _run(file, gpu))]
    return runs


def _run(file: Wanted, gpu: str) -> Run | None:
    overrides = [f"gpu={gpu}"] if gpu else []
    try:
        if is_recipe(file.path):
            with own_folder_of(file.path):
                resolved = configs.load(file.path.stem, overrides)
                return _judged(resolved, None, file.shown)
        if not file.named and not foreign.recognized(file.path):
            return None
        reading = foreign.read(file.path, foreign.Request(tuple(overrides), file.settings))
    except Refusal as refusal:
        if not file.named and refusal.rule == NO_RUN:
            return None
        level = Level.error if file.named or is_recipe(file.path) else Level.warning
        rule = refusal.rule or "not-judged"
        return Run(file.shown, gpu or "-", [Problem(file.shown, gpu or "-", rule, refusal.sentence(), level)])
    return _judged(reading.resolved, reading, file.shown)


def _judged(resolved: Resolved, reading: Reading | None, shown: str) -> Run:
    spec = resolved.spec
    gpu, terms = spec.gpu.name, reading.terms if reading else SameTerms()
    try:
        if not resolved.layout_given:
            spec, _ = planner.choose_layout(resolved)
        verdict = judge(reading, spec) if reading else planner.check(spec)
    except Refusal as refusal:
        return Run(shown, gpu, [Problem(shown, gpu, refusal.rule or "no-layout", refusal.sentence())])
    problems = [_problem(shown, gpu, found, terms, Level.error) for found in verdict.violations]
    if verdict.memory and not verdict.memory.fits:
        needs = f"needs {verdict.memory.needed_gib:.1f} GiB of {verdict.memory.capacity_gib:.1f}"
        problems.append(Problem(shown, gpu, "does-not-fit", f"{needs} on {gpu}"))
    if reading:
        problems += [_problem(shown, gpu, found, terms, Level.warning) for found in reading.advice]
        if reading.unknown:
            said = f"not understood: {', '.join(reading.unknown)}"
            problems.append(Problem(shown, gpu, "not-understood", said, Level.warning))
    rate = verdict.time.tokens_per_s_per_gpu if verdict.time else 0.0
    return Run(shown, gpu, problems, rate, spec.layout.vpp, _chunks_said(resolved, reading))


def _problem(shown: str, gpu: str, found: planner.Violation, terms: Terms, level: Level) -> Problem:
    return Problem(shown, gpu, found.rule, terms.say(f"{found.message.rstrip('.')}. {found.fix}".strip()), level)


def _chunks_said(resolved: Resolved, reading: Reading | None) -> tuple[str, ...]:
    """What of the file sets the model chunks, as it is written there."""
    if reading:
        return tuple(sorted(each for each in reading.used if any(word in each for word in _VPP)))
    who, layout = resolved.provenance, resolved.spec.layout
    return tuple(
        f"{name}={getattr(layout, name)}" for name in ("vpp", "pipeline_layout") if who[f"layout.{name}"] != "default"
    )
