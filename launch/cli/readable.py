"""A recipe or a file of another tool on a command line, and the answer of ``check`` for a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slipway.launch.cli.answer import Answer
from slipway.launch.cli.costs import run_json
from slipway.launch.cli.printing import Style, Terminal, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slipway.configs import Resolved, Spec
    from slipway.launch.foreign import Reading
    from slipway.planner import Candidate, Verdict


class Readable(NamedTuple):
    """What a command is about; ``reading`` where it is a file."""

    resolved: Resolved
    reading: Reading | None = None


def readable(name: str, overrides: Sequence[str], settings: Sequence[str]) -> Readable:
    """The recipe or the file that NAME says, under the user's overrides.

    Raises:
        Refusal: there is neither, or it cannot be read.
    """
    from slipway import configs
    from slipway.launch import foreign

    known = {*configs.recipe_names(), *configs.planned_only_names()}
    if name in known or not foreign.is_path(name):
        if settings:
            raise configs.Refusal(f"--set {settings[0]} is for a script, and {name} is a recipe", "Use key=value.")
        return Readable(configs.load(name, list(overrides), to_plan=True))
    reading = foreign.read(Path(name), foreign.Request(tuple(overrides), values_of(settings)))
    return Readable(reading.resolved, reading)


def values_of(settings: Sequence[str]) -> dict[str, str]:
    """``--set NAME=VALUE`` as a mapping.

    Raises:
        Refusal: one is something else.
    """
    from slipway.configs import Refusal

    values = {}
    for setting in settings:
        variable, equals, value = setting.partition("=")
        if not equals or not variable:
            raise Refusal(f"--set {setting} is not NAME=VALUE", "Write it as --set NODES=8.")
        values[variable] = value
    return values


@dataclass(frozen=True)
class CheckedFile(Answer):
    """The planner's verdict on a file's run, in the file's own terms."""

    reading: Reading
    verdict: Verdict
    chosen_by: str
    nearest: Candidate | None

    def as_json(self) -> dict[str, Any]:
        from slipway import planner
        from slipway.launch.foreign.megatron.model import as_json

        count = self.verdict.parameters
        out = planner.as_json(self.verdict) | {
            "layout_chosen_by": self.chosen_by,
            "source": self.reading.as_json(),
            "model": as_json(self.verdict.spec.model, count.total, count.active),
        }
        if self.verdict.legal:
            out |= run_json(self.verdict.spec)
        for key in ("violations", "warnings"):
            out[key] = [{name: self._say(text) for name, text in found.items()} for found in out[key]]
        if self.nearest:
            out["nearest"] = planner.layout_json(self.nearest.spec) | {"changes": self._changes()}
        return out

    def _say(self, text: str) -> str:
        return self.reading.terms.say(text)

    def _changes(self) -> list[str]:
        assert self.nearest
        return self.reading.terms.changes(self.verdict.spec.layout, self.nearest.layout)

    def show(self, terminal: Terminal) -> None:
        from slipway.launch.cli.commands.check import show_judgement
        from slipway.planner.layout import describe

        self._show_head(terminal)
        said = [
            [replace(item, message=self._say(item.message), fix=self._say(item.fix)) for item in found]
            for found in (self.verdict.violations, self.verdict.advice)
        ]
        verdict = replace(self.verdict, violations=said[0], advice=said[1])
        show_judgement(terminal, verdict, f"{describe(verdict.spec)}   ({self.chosen_by})")
        if self.nearest:
            needs = f"needs {self.nearest.memory.needed_gib:.1f} GiB, {self.nearest.time.step_time_s:.2f} s per step"
            terminal.field("nearest", f"{describe(self.nearest.spec)}: legal, {needs}")
            terminal.field("", "; ".join(self._changes()))

    def _show_head(self, terminal: Terminal) -> None:
        reading, spec = self.reading, self.verdict.spec
        gpus = f"{spec.gpus} x {spec.gpu.name.upper()}"
        terminal.line(f"{reading.path} on {gpus}, {spec.precision.name}, sequence {spec.seq_length:,}", Style.BOLD)
        terminal.field("read as", f"{reading.kind}, by the definitions of {reading.version}")
        terminal.field("model", describe_model(spec))
        terminal.field("used", f"{plural(len(reading.used), 'argument')}: {', '.join(reading.used)}")
        terminal.field("no bearing", f"{len(reading.irrelevant)}: {', '.join(map(_name, reading.irrelevant))}")
        for label, found in (("not modelled", reading.not_modelled), ("not understood", reading.unknown)):
            text = f"{len(found)}: {', '.join(found)}" if found else "0"
            terminal.field(label, text, Style.WARNING if found else Style.PLAIN)
        for what in reading.assumed:
            terminal.field("assumed", what, Style.WARNING)

    def conclude(self) -> None:
        from slipway.configs import Refusal

        if not self.verdict.legal:
            first = self.verdict.violations[0]
            raise Refusal(self._say(first.message), self._say(first.fix))
        if self.verdict.memory and not self.verdict.memory.fits:
            from slipway import planner

            fix = "The nearest layout that fits is shown above." if self.nearest else ""
            raise planner.too_large(self.verdict.spec, self.verdict.memory, fix)


def _name(argument: str) -> str:
    return argument.partition(" ")[0]


def describe_model(spec: Spec) -> str:
    """The architecture in words."""
    model = spec.model
    words = [
        f"{model.num_layers} layers",
        f"hidden {model.hidden_size}",
        f"feed-forward {model.ffn_hidden_size}",
        f"{model.num_attention_heads} heads of {model.kv_channels}",
    ]
    if model.is_mla:
        words.append(f"multi-latent attention (rank {model.kv_lora_rank})")
    elif model.num_query_groups != model.num_attention_heads:
        words.append(f"{model.num_query_groups} query groups")
    if model.is_moe:
        words.append(f"{model.num_moe_experts} experts of {model.moe_ffn_hidden_size}, {model.moe_router_topk} a token")
    if model.hybrid_override_pattern:
        counts = {symbol: model.hybrid_override_pattern.count(symbol) for symbol in "M*-E"}
        names = {"M": "Mamba", "*": "attention", "-": "feed-forward", "E": "expert"}
        words.append("hybrid of " + ", ".join(f"{count} {names[s]}" for s, count in counts.items() if count))
    if model.window_size:
        words.append(f"window {model.window_size}")
    if model.mtp_num_layers:
        words.append(f"{plural(model.mtp_num_layers, 'layer')} of multi-token prediction")
    return ", ".join([*words, f"vocabulary {model.vocab_size:,}"])


def judge(reading: Reading, spec: Spec) -> Verdict:
    """A run of a file, judged by the rules of the framework that trains it."""
    from slipway import planner

    verdict = planner.check(spec, reading.framework, dropout=reading.dropout, lifted=reading.lifted)
    return replace(verdict, advice=[*reading.advice, *verdict.advice])


def check_file(reading: Reading, plot: Path | None) -> CheckedFile:
    """Judge the run of a file by the rules of the framework that trains it."""
    from slipway import planner
    from slipway.launch.cli.commands.check import draw

    spec, chosen_by = reading.resolved.spec, "the file's"
    if not reading.resolved.layout_given:
        spec, chosen_by = planner.choose_layout(reading.resolved)
    verdict = judge(reading, spec)
    draw(verdict, spec.name, plot)
    nearest = None if verdict.legal and verdict.fits else planner.nearest_good(spec, reading.resolved.pinned)
    return CheckedFile(reading, verdict, chosen_by, nearest)
