"""``slipway check``: is a recipe legal, does it fit, how fast will it be."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import (
    OUT_PATH,
    Answer,
    Section,
    command,
    overrides_argument,
    readable_argument,
    settings_option,
)
from slipway.launch.cli.costs import run_json, show_run
from slipway.launch.cli.pinned import pinned_json, pinned_line
from slipway.launch.cli.printing import Style, Table, Terminal, kept_together
from slipway.launch.cli.rungs import rungs_json, rungs_table

if TYPE_CHECKING:
    from slipway.configs import Resolved, Spec
    from slipway.launch.cli.training_data import TrainingData
    from slipway.planner import Candidate, Verdict
    from slipway.planner.ladder import Rung
    from slipway.planner.time.step import StepTime

MOST_STAGES_SHOWN = 6  # of a longer pipeline, only the first two stages and the last two
MOST_RUNGS = 6  # of the ladder of changes; slipway advise prints all
SMALLEST_SHARE_SHOWN = 0.002  # of the step time: smaller parts of it are left out
MEMORY_COLUMNS = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers", "total")


@dataclass(frozen=True)
class Checked(Answer):
    """The planner's verdict, what chose the layout, and the nearest layout that works if this one does not."""

    verdict: Verdict
    chosen_by: str
    nearest: Candidate | None
    resolved: Resolved
    ladder: Sequence[Rung] = ()  # of a legal layout that is not likely to fit

    def data(self) -> TrainingData:
        """What the run trains on, as far as this machine can tell."""
        from slipway.launch.cli.training_data import training_data

        return training_data(self.verdict.spec)

    def existing(self) -> tuple[str, bool] | None:
        """What a launch would do with the run that the folder holds already; None where it holds none."""
        spec = self.verdict.spec
        if not (Path(spec.run.dir) / spec.name).is_dir():
            return None
        from slipway.launch.runs.outlook import outlook_of_existing

        return outlook_of_existing(spec)

    def as_json(self) -> dict[str, Any]:
        from slipway import planner
        from slipway.planner.layout import differences

        out = planner.as_json(self.verdict) | {"layout_chosen_by": self.chosen_by}
        out |= pinned_json(self.resolved)
        if self.resolved.layout_given:
            out["chosen"] = []
        data = self.data()
        out["data"] = data.as_json()
        out["warnings"] += [{"rule": "data", "message": message, "fix": fix} for message, fix in data.warnings]
        if self.verdict.legal:
            out |= run_json(self.verdict.spec)
        if found := self.existing():
            out["resume"] = {"says": found[0], "possible": found[1]}
        if self.nearest:
            changes = differences(self.verdict.spec.layout, self.nearest.layout)
            out["nearest"] = planner.layout_json(self.nearest.spec) | {"changes": changes}
        out["ladder"] = rungs_json(self.ladder)
        return out

    def show(self, terminal: Terminal) -> None:
        show_verdict(terminal, self.verdict, self.chosen_by, self.data(), self.resolved)
        if found := self.existing():
            terminal.field("resume", found[0], Style.GOOD if found[1] else Style.WARNING)
        if self.nearest:
            show_nearest(terminal, self.verdict.spec, self.nearest)
        if self.ladder:
            terminal.line("Single changes that free memory:")
            terminal.table(rungs_table(self.ladder[:MOST_RUNGS], refused=False))

    def conclude(self) -> None:
        verdict = self.verdict
        if not verdict.legal:
            from slipway.configs import Refusal

            raise Refusal(verdict.violations[0].message, verdict.violations[0].fix)
        if verdict.memory and not verdict.memory.fits:
            from slipway import planner

            fix = "The nearest layout that fits is shown above." if self.nearest else ""
            raise planner.too_large(verdict.spec, verdict.memory, fix)


@command(Section.PLANNING)
@readable_argument
@overrides_argument
@settings_option
@click.option("--plot", type=OUT_PATH, metavar="PATH", help="Draw the pipeline's timeline into PATH.png and PATH.svg.")
@click.option(
    "--trace",
    type=OUT_PATH,
    metavar="FILE",
    help="Write the predicted step for Perfetto or Chrome (.json or .json.gz).",
)
def check(
    name: str, overrides: tuple[str, ...], settings: tuple[str, ...], plot: Path | None, trace: Path | None
) -> Answer:
    """Check whether a run is legal and fits, and predict its speed.

    A run is a recipe, or a file of another tool: a Megatron-LM launch script, its model_config.yaml, a file of its
    arguments or a log that prints them, or a Hugging Face config.json; nothing in it is executed. Needs no GPU and no
    NeMo. Exits with 2 if the run is illegal or too large, and names the nearest layout that works.
    """
    from slipway import planner
    from slipway.launch.cli.readable import check_file, readable

    found = readable(name, overrides, settings)
    if found.reading:
        checked = check_file(found.reading, plot)
        write_trace(checked.verdict, trace)
        return checked
    resolved = found.resolved
    spec, chosen_by = planner.choose_layout(resolved)
    verdict = planner.check(spec)
    draw(verdict, resolved.title, plot)
    write_trace(verdict, trace)
    nearest = None if verdict.legal and verdict.fits else planner.nearest_good(spec, resolved.pinned)
    return Checked(verdict, chosen_by, nearest, resolved, ladder_of(verdict, resolved))


def ladder_of(verdict: Verdict, resolved: Resolved) -> list[Rung]:
    """The changes that free memory, where the run is legal and not likely to fit."""
    from slipway.planner.ladder import ladder
    from slipway.planner.memory.probability import LIKELY

    return ladder(verdict.spec, resolved.untouched) if verdict.legal and verdict.p_fits < LIKELY else []


def write_trace(verdict: Verdict, path: Path | None) -> None:
    """Write the timeline of the predicted step, where a path is given and the run is legal.

    Raises:
        Refusal: the file cannot be written.
    """
    if path is None or not verdict.time:
        return
    from slipway.configs import Refusal
    from slipway.planner.trace import write_trace as write

    try:
        write(verdict.spec, path)
    except OSError as error:
        raise Refusal(f"{path} cannot be written: {error.strerror}") from None


def draw(verdict: Verdict, title: str, plot: Path | None) -> None:
    """Draw the pipeline's timeline into PATH.png and PATH.svg, where a path is given and the run is legal."""
    if not plot or not verdict.time:
        return
    from slipway.planner.layout import describe
    from slipway.planner.pictures import draw_timeline
    from slipway.planner.time.schedule import kind_of

    spec = verdict.spec
    title = f"{title}: {describe(spec)}"
    draw_timeline(verdict.time, spec.batch.num_micro_batches, plot, title, kind_of(spec.layout))


def show_verdict(terminal: Terminal, verdict: Verdict, chosen_by: str, data: TrainingData, resolved: Resolved) -> None:
    """Print the verdict: the run, its rules, its memory by stage, its time."""
    from slipway.planner.layout import describe

    spec = verdict.spec
    gpus = f"{spec.gpus} x {spec.gpu.name.upper()}"
    terminal.line(
        f"{resolved.title} on {gpus}, {spec.precision.name}, sequence {spec.seq_length:,}; data: {data.describe()}",
        Style.BOLD,
    )
    for message, fix in data.warnings:
        terminal.field("data", f"{message}. {fix}", Style.WARNING)
    if resolved.pinned:
        terminal.field("given", pinned_line(spec.layout, resolved.pinned, searched=not resolved.layout_given))
    show_judgement(terminal, verdict, f"{describe(spec)}   ({chosen_by})")


def show_judgement(terminal: Terminal, verdict: Verdict, layout: str) -> None:
    """Print what follows the head: the layout, the rules, the memory by stage, the time."""
    from slipway.planner.time.schedule import kind_of

    spec, count = verdict.spec, verdict.parameters
    terminal.field("layout", layout)
    if spec.layout.pp > 1:
        terminal.field("schedule", kind_of(spec.layout).value)
    terminal.field("size", f"{count.total:,} parameters, {count.active:,} active per token")
    for violation in verdict.violations:
        terminal.field("illegal", f"{violation.rule}: {violation.message} {violation.fix}", Style.BAD)
    for violation in verdict.advice:
        terminal.field("advice", f"{violation.rule}: {violation.message} {violation.fix}", Style.WARNING)
    if verdict.memory:
        _show_memory(terminal, verdict)
    if verdict.time:
        _show_time(terminal, spec, verdict.time)
        show_run(terminal, spec)


def _show_memory(terminal: Terminal, verdict: Verdict) -> None:
    from slipway.planner.memory.probability import LIKELY

    memory = verdict.memory
    assert memory is not None, "a legal run has an estimate"
    terminal.field(
        "fits" if memory.fits else "too big",
        f"{memory.needed_gib:.1f} of {memory.capacity_gib:.1f} GiB, {_percent(verdict.p_fits)} likely to fit "
        f"(allocator peak {memory.peak_gib:.1f} on stage {memory.peak_stage.stage}); "
        f"headroom {memory.headroom_gib:+.1f} GiB; host {memory.host_gib_per_gpu:.0f} GiB per GPU; "
        f"checkpoint {memory.checkpoint_gib:,.0f} GiB",
        (Style.GOOD if verdict.p_fits >= LIKELY else Style.WARNING) if memory.fits else Style.BAD,
    )
    if memory.fits and math.isfinite(verdict.expert_load):
        terminal.field(
            "experts",
            f"fit up to {verdict.expert_load:.2f} times an even load "
            "(real routing, not forced balance, peaks at 1.3 to 1.6: docs/planner.md)",
        )
    columns = [*MEMORY_COLUMNS[:-1], "total GiB"]
    table = Table(("stage", *columns), right=frozenset(range(len(columns) + 1)))
    all_shown = len(memory.stages) <= MOST_STAGES_SHOWN
    for stage in memory.stages if all_shown else [*memory.stages[:2], *memory.stages[-2:]]:
        table.add(str(stage.stage), *(f"{getattr(stage, f'{column}_gib'):.2f}" for column in MEMORY_COLUMNS))
    terminal.table(table)


def _percent(probability: float) -> str:
    """A probability in whole percent; never 100 %, which no estimate promises."""
    return f"{min(max(round(100 * probability), 1), 99)} %"


def _show_time(terminal: Terminal, spec: Spec, time: StepTime) -> None:
    from slipway.planner.calibration import calibration_for, where

    terminal.field("step", f"{time.step_time_s:.2f} s  (68 % interval {time.low_s:.2f} to {time.high_s:.2f})")
    frozen = "; no gradients of frozen weights" if spec.task.lora_rank else ""
    terminal.field(
        "speed",
        f"{time.tokens_per_s_per_gpu:,.0f} tokens/s per GPU, {time.model_tflops_per_gpu:.0f} model TFLOP/s per GPU "
        f"(causal attention; {time.model_tflops_full_attention:.0f} with full{frozen}), "
        f"MFU {time.mfu:.1%}, bubble {time.bubble_fraction:.1%}",
    )
    parts = sorted(time.breakdown.items(), key=lambda part: -part[1])
    shown = [kept_together(f"{name} {s:.2f} s") for name, s in parts if s > SMALLEST_SHARE_SHOWN * time.step_time_s]
    terminal.field("spent", ", ".join(shown))
    terminal.field("fitted", f"{time.calibration} ({where(spec.gpu, calibration_for(spec))})")


def show_nearest(terminal: Terminal, given: Spec, nearest: Candidate) -> None:
    """Print the nearest layout that is legal and fits, in words and as what changes from the given one."""
    from slipway.planner.layout import describe, differences

    needs = f"needs {nearest.memory.needed_gib:.1f} GiB, {nearest.time.step_time_s:.2f} s per step"
    terminal.field("nearest", f"{describe(nearest.spec)}: legal, {needs}")
    changes = differences(given.layout, nearest.layout)
    terminal.field("changes", " ".join(shlex.quote(override) for override in changes))
