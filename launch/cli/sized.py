"""The answer of ``slipway plan --gpus``: a run at several sizes, and which of them is best."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slipway.launch.cli.answer import Answer
from slipway.launch.cli.printing import Style, Table, Terminal
from slipway.launch.cli.quantities import dollars, duration, energy, in_tokens

if TYPE_CHECKING:
    from slipway.configs import Resolved
    from slipway.planner.scale import Goal, Size

MOST_SIZES = 64


def counts_of(text: str) -> list[int]:
    """The numbers of GPUs that ``64..1024`` (doublings from 64 on, and 1024) or ``64,96,128`` means.

    Raises:
        Refusal: it is neither.
    """
    from slipway.configs import Refusal

    fix = "Write --gpus 64..1024 for 64, 128, ... 1,024, or a list such as --gpus 64,96,128."
    if found := re.fullmatch(r"([1-9]\d{0,7})\.\.([1-9]\d{0,7})", text):
        low, high = map(int, found.groups())
        if low > high:
            raise Refusal(f"--gpus {text} ends below its start", fix)
        doublings = [low << i for i in range((high // low).bit_length())]
        return [count for count in doublings if count < high] + [high]
    if not re.fullmatch(r"[1-9]\d{0,7}(,[1-9]\d{0,7})*", text):
        raise Refusal(f"--gpus {text} is not a range of GPUs", fix)
    counts = sorted(set(map(int, text.split(","))))
    if len(counts) > MOST_SIZES:
        raise Refusal(f"--gpus lists {len(counts)} sizes, and at most {MOST_SIZES} are searched", fix)
    return counts


@dataclass(frozen=True)
class Sized(Answer):
    """A run at several sizes, and the best one under the goal and the deadline."""

    resolved: Resolved
    sizes: list[Size]
    goal: Goal
    deadline_s: float | None
    best: Size | None

    def as_json(self) -> dict[str, Any]:
        from slipway.planner.cost import SECONDS_PER_DAY

        return {
            "goal": self.goal.value,
            "deadline_days": self.deadline_s and self.deadline_s / SECONDS_PER_DAY,
            "best": self.best and self.best.gpus,
            "sizes": [self._size_json(size) for size in self.sizes],
        }

    def _size_json(self, size: Size) -> dict[str, Any]:
        from slipway import planner
        from slipway.planner.scale import not_dominated

        if size.candidate is None or size.goodput is None:
            return {"gpus": size.gpus, "why_not": size.why_not}
        return {
            "gpus": size.gpus,
            "layout": planner.layout_json(size.candidate.spec),
            "step_time_s": size.candidate.time.step_time_s,
            "mfu": size.candidate.time.mfu,
            "step_days": planner.cost_of_seconds(size.candidate.spec, size.step_seconds).days,
            "goodput": size.goodput.value,
            **(planner.cost_json(size.cost) if math.isfinite(size.seconds) else {}),
            "p_deadline": size.p_in_time,
            "pareto": size in not_dominated(self.sizes),
        }

    def show(self, terminal: Terminal) -> None:
        spec = self.resolved.spec
        what = f"{self.resolved.title} on {spec.gpu.name.upper()}, {spec.precision.name}, batch {spec.layout.gbs}"
        tokens = in_tokens(spec.run.max_steps * spec.layout.gbs * spec.seq_length)
        terminal.line(f"{what} x {spec.seq_length:,}, about {tokens} tokens", Style.BOLD)
        terminal.table(self._table())
        if self.best is None:
            return
        words = {"days": "fastest", "dollars": "cheapest", "gpus": "smallest"}[self.goal.value]
        by = "" if self.deadline_s is None else f" that ends within {duration(self.deadline_s)} with 90 % probability"
        total = self.best.cost
        price = f", {dollars(total.dollars)}" if total.dollars is not None else ""
        used = f", {energy(total.system_kwh)} with the nodes" if total.system_kwh is not None else ""
        text = f"gpus={self.best.gpus}: the {words}{by}; {total.days:,.1f} days, {total.gpu_hours:,.0f} GPU-hours"
        terminal.field("best", f"{text}{price}{used}", Style.GOOD)

    def _table(self) -> Table:
        from slipway.planner.layout import describe
        from slipway.planner.scale import not_dominated

        priced = self.resolved.spec.cluster.price > 0
        head = ["", "GPUs", "layout", "days", "$" if priced else "GPU-hours", "goodput", "MFU"]
        in_time = [] if self.deadline_s is None else ["in time"]
        table = Table([*head, *in_time], right=frozenset({1, 3, 4, 5, 6, 7} - ({7} if not in_time else set())))
        kept = not_dominated(self.sizes)
        for size in self.sizes:
            if size.candidate is None or size.goodput is None or not math.isfinite(size.seconds):
                table.add(
                    "",
                    f"{size.gpus:,}",
                    size.why_not or "interrupted faster than it restarts",
                    *[""] * (len(table.head) - 3),
                )
                continue
            total, mark = size.cost, "best" if size is self.best else "*" if size in kept else ""
            money = dollars(total.dollars) if total.dollars is not None else f"{total.gpu_hours:,.0f}"
            row = [mark, f"{size.gpus:,}", describe(size.candidate.spec), f"{total.days:,.1f}", money]
            row += [f"{size.goodput.value:.1%}", f"{size.candidate.time.mfu:.1%}"]
            table.add(*row, *([] if size.p_in_time is None else [f"{size.p_in_time:.0%}"]))
        return table

    def conclude(self) -> None:
        if self.best is not None:
            return
        from slipway.configs import Refusal

        able = [size for size in self.sizes if math.isfinite(size.seconds)]
        low, high = self.sizes[0].gpus, self.sizes[-1].gpus
        if not able or self.deadline_s is None:
            raise Refusal(
                f"no size from {low:,} to {high:,} GPUs has a layout that fits", "Use other sizes with --gpus."
            )
        fastest = min(able, key=lambda size: size.seconds)
        raise Refusal(
            f"no size from {low:,} to {high:,} GPUs ends within {duration(self.deadline_s)} with 90 % probability: "
            f"the fastest, gpus={fastest.gpus}, takes {duration(fastest.seconds)}",
            "Use more GPUs, fewer tokens, a later deadline, or a faster precision.",
        )
