"""``slipway strategies``: DDP, ZeRO, FSDP, TP, PP, CP and EP on one model and cluster, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slipway.launch.cli.answer import Answer, Section, command, overrides_argument, readable_argument, settings_option
from slipway.launch.cli.printing import Style, Table, Terminal

if TYPE_CHECKING:
    from slipway.configs import Spec
    from slipway.planner.strategies import Case, Strategy

PARTS = ("parameters_gib", "gradients_gib", "optimizer_gib", "activations_gib", "buffers_gib")


@dataclass(frozen=True)
class Compared(Answer):
    """Every strategy with its best layout, and the named cases."""

    title: str
    spec: Spec
    strategies: list[Strategy]
    cases: list[Case]

    def as_json(self) -> dict[str, Any]:
        return {
            "strategies": [self._strategy_json(each) for each in self.strategies],
            "cases": {case.name: case.sentence for case in self.cases},
        }

    @staticmethod
    def _strategy_json(strategy: Strategy) -> dict[str, Any]:
        from slipway import planner

        found: dict[str, Any] = {"strategy": strategy.name, "fits": strategy.fits, "why": strategy.why}
        if strategy.best is None:
            return found | {"layout": None}
        return found | {
            "layout": planner.layout_json(strategy.best.spec),
            "memory": strategy.parts | {"needed_gib": strategy.needed_gib},
            "step_time_s": strategy.best.time.step_time_s,
            "mfu": strategy.best.time.mfu,
        }

    def show(self, terminal: Terminal) -> None:
        from slipway.planner.layout import short_name

        spec = self.spec
        on = f"{spec.gpus:,} x {spec.gpu.name.upper()} of {spec.gpu.usable_memory_gib:.0f} GiB, {spec.precision.name}"
        terminal.line(f"{self.title} on {on}, batch {spec.layout.gbs} x {spec.seq_length:,}", Style.BOLD)
        heads = (
            "strategy",
            "layout",
            "weights",
            "gradients",
            "optimizer",
            "activations",
            "other",
            "needs",
            "step s",
            "why",
        )
        table = Table(heads, right=frozenset(range(2, 9)))
        for each in self.strategies:
            if each.best is None:
                table.add(each.name, *[""] * 7, "", each.why)
                continue
            parts = [f"{each.parts[name]:.1f}" for name in PARTS]
            step = f"{each.best.time.step_time_s:.2f}" if each.fits else ""
            layout = f"{short_name(each.best.layout)} DP{each.best.spec.dp}"
            table.add(each.name, layout, *parts, f"{each.needed_gib:.1f}", step, each.why)
        terminal.table(table)
        terminal.line(
            "GiB of the fullest stage; other: communication buffers; needs: also fragmentation and the context."
        )
        for case in self.cases:
            terminal.field(case.name, case.sentence)


@command(Section.PLANNING)
@readable_argument
@overrides_argument
@settings_option
def strategies(name: str, overrides: tuple[str, ...], settings: tuple[str, ...]) -> Answer:
    """Compare DDP, ZeRO, FSDP, TP, PP, CP and EP on a model.

    For each, the best layout that fits the GPUs (or the smallest that does not), its memory in five parts, its speed,
    and why it is used or not. The cases say what the largest layer, one node, a slow network and a long context ask
    for.
    """
    from slipway.launch.cli.readable import readable
    from slipway.planner.strategies import cases, compare_strategies

    resolved = readable(name, overrides, settings).resolved
    spec = resolved.spec
    return Compared(resolved.title, spec, compare_strategies(spec), cases(spec))
