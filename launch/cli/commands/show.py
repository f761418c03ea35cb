"""``slipway show``: a recipe's values, what set each, and the reviewed difference from NeMo's recipe of that name."""

from __future__ import annotations

import dataclasses
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import OUT_PATH, Answer, Section, command, recipe_arguments
from slipway.launch.cli.printing import Table, Terminal

if TYPE_CHECKING:
    from slipway.configs import Resolved, Spec
    from slipway.planner.nvidia import Compared

UPSTREAM = Path(__file__).parents[3] / "recipes" / "upstream"


@dataclasses.dataclass(frozen=True)
class Shown(Answer):
    """A resolved recipe: rows of ``key``, ``value`` and ``set_by``, and lines ``key: upstream -> ours``."""

    name: str
    values: list[dict[str, Any]]
    difference: list[str]

    def as_json(self) -> dict[str, Any]:
        return {"values": self.values, "upstream_difference": self.difference}

    def show(self, terminal: Terminal) -> None:
        table = Table(("key", "value", "set by"))
        for row in self.values:
            table.add(row["key"], str(row["value"]), row["set_by"])
        terminal.table(table)
        if self.difference:
            terminal.line(f"Differences from NeMo 2.7.3's {self.name} (NeMo -> Slipway):")
            for line in self.difference:
                terminal.line("  " + line)


@dataclasses.dataclass(frozen=True)
class ShownSchedule(Answer):
    """A run's learning rate, batch and changing constants over its tokens."""

    spec: Spec
    plot: Path | None

    def as_json(self) -> dict[str, Any]:
        from slipway import planner
        from slipway.planner.course import samples, turns

        optim = self.spec.optim
        return {
            "name": self.spec.name,
            "run": planner.course_json(planner.course(self.spec)) if planner.is_legal(self.spec) else None,
            "turns": [dataclasses.asdict(moment) for moment in turns(self.spec)],
            "samples": [dataclasses.asdict(moment) for moment in samples(self.spec)],
            "source": optim.source,
            "rope_scaling_factor": self.spec.model.rope_scaling_factor,
            "context_extension": list(optim.context_extension),
            "plot": str(self.plot) if self.plot else None,
        }

    def show(self, terminal: Terminal) -> None:
        from slipway.launch.cli.schedule import show_schedule

        show_schedule(terminal, self.spec)
        if self.plot:
            terminal.line(f"drawn: {self.plot}")


@dataclasses.dataclass(frozen=True)
class ShownLevers(Answer):
    """What makes a run fast, beside what NVIDIA's own recipes set."""

    spec: Spec
    levers: list[Compared]
    set_by: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.spec.name,
            "gpu": self.spec.gpu.name,
            "gpus": self.spec.gpus,
            "precision": self.spec.precision.name,
            "levers": [dataclasses.asdict(each) | {"set_by": self.set_by[each.key]} for each in self.levers],
        }

    def show(self, terminal: Terminal) -> None:
        from slipway.planner.layout import describe

        spec = self.spec
        terminal.line(f"{spec.name} on {spec.gpus} x {spec.gpu.name.upper()}, {spec.precision.name}, {describe(spec)}")
        table = Table(("lever", "NVIDIA", "ours", "set by", "why they differ"))
        files = list(dict.fromkeys(each.source for each in self.levers if each.source))
        for each in self.levers:
            theirs = f"{each.theirs} [{files.index(each.source) + 1}]" if each.source else "-"
            who, _, _ = self.set_by[each.key].partition(" (")  # the files are listed below, and shown without --levers
            table.add(each.key, theirs, each.ours, who, each.why)
        terminal.table(table)
        for number, file in enumerate(files, 1):
            terminal.line(f"[{number}] {file}")
        if not files:
            terminal.line(f"NVIDIA publishes no settings for {spec.model.name} on {spec.gpu.name}.")


@command(Section.RECIPES)
@recipe_arguments
@click.option("--levers", is_flag=True, help="Compare what makes the run fast with NVIDIA's own recipes.")
@click.option("--schedule", is_flag=True, help="Show learning rate, batch and changing constants over the tokens.")
@click.option("--plot", type=OUT_PATH, metavar="FILE", help="With --schedule: draw it into FILE, .png or .svg.")
def show(name: str, overrides: tuple[str, ...], levers: bool, schedule: bool, plot: Path | None) -> Answer:
    """Show every value of a recipe and what set it.

    Shows also how the recipe, without overrides, differs from NeMo 2.7.3's recipe of the same name. With --schedule:
    what the run does over its tokens. With --levers: overlap, kernels, memory savers and environment, beside those of
    NVIDIA's performance recipes.
    """
    from slipway.configs import Refusal

    if levers and (schedule or plot):
        raise Refusal("--levers and --schedule are two answers", "Give one of them.")
    if levers:
        return _with_levers(name, list(overrides))
    if schedule or plot:
        return ShownSchedule(_with_schedule(name, list(overrides), schedule, plot), plot)
    return Shown(name, resolved_rows(name, list(overrides)), upstream_difference(name))


def _with_levers(name: str, overrides: list[str]) -> ShownLevers:
    from slipway import configs
    from slipway.planner import nvidia

    resolved = configs.load(name, overrides, to_plan=True)
    spec, set_by = _completed(resolved)
    return ShownLevers(spec, nvidia.compare(spec, resolved.given), set_by)


def _with_schedule(name: str, overrides: list[str], schedule: bool, plot: Path | None) -> Spec:
    """The recipe whose schedule is shown, drawn into ``plot`` where that is given."""
    from slipway import configs, planner

    if not schedule:
        raise configs.Refusal("--plot draws a schedule, and --schedule was not given", "Give both.")
    if plot and plot.suffix not in (".png", ".svg"):
        raise configs.Refusal(f"--plot {plot} ends neither in .png nor in .svg", "Give a file that does.")
    if plot and not plot.parent.is_dir():
        raise configs.Refusal(f"--plot {plot}: there is no folder {plot.parent}", "Make it, or give another.")
    resolved = configs.load(name, overrides, to_plan=True)
    try:
        spec = planner.complete(resolved)
    except configs.Refusal:  # a schedule needs no layout; only the predicted time does
        spec = resolved.spec
    if plot:
        from slipway.planner.pictures import draw_schedule

        draw_schedule(spec, plot)
    return spec


def resolved_rows(name: str, overrides: list[str]) -> list[dict[str, Any]]:
    """Every key with its value and what set it: default, model fact, preset, recipe, layout source, override."""
    from slipway import configs
    from slipway.configs.load import schema_keys

    spec, set_by = _completed(configs.load(name, overrides, to_plan=True))
    return [{"key": key, "value": _value(spec, key), "set_by": set_by[key]} for key in schema_keys()]


def _completed(resolved: Resolved) -> tuple[Spec, dict[str, str]]:
    """The recipe with its layout and levers, and what set each key."""
    from slipway import planner
    from slipway.configs.load import PARALLEL_KEYS, schema_keys
    from slipway.planner import nvidia

    spec, chosen_by = planner.choose_layout(resolved)
    set_by = dict(resolved.provenance)
    for key in schema_keys():
        changed = _value(resolved.spec, key) != _value(spec, key)
        if changed and key in nvidia.KEYS and key not in PARALLEL_KEYS:
            set_by[key] = f"NVIDIA's recipe ({nvidia.source_of(spec, key)})"
        elif key.startswith("layout.") and (changed or (not resolved.layout_given and key in PARALLEL_KEYS)):
            set_by[key] = "layout.split_unevenly" if resolved.layout_given else f"layout ({chosen_by})"
    return spec, set_by


def _value(spec: Any, dotted: str) -> Any:
    """The value of a dotted key as JSON can hold it."""
    for part in dotted.split("."):
        spec = getattr(spec, part)
    if isinstance(spec, Enum):
        return spec.value
    return dict(spec) if isinstance(spec, dict) else spec


def upstream_difference(name: str) -> list[str]:
    """Lines ``key: upstream -> ours``; empty if NeMo has no recipe of this name."""
    path = UPSTREAM / f"{name}.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line for line in lines if line and not line.startswith("#")]
