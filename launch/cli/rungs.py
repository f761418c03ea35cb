"""Single changes that free memory, printed as a table of overrides to paste."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slipway.launch.cli.printing import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slipway.planner.ladder import Rung


def rungs_json(rungs: Sequence[Rung]) -> list[dict[str, Any]]:
    """Every change, legal or not."""
    return [
        {
            "overrides": list(rung.overrides),
            "legal": rung.candidate is not None,
            "frees_gib": rung.frees_gib if rung.candidate else None,
            "slower": rung.slower if rung.candidate else None,
            "needed_gib": rung.candidate.memory.needed_gib if rung.candidate else None,
            "fits": rung.candidate is not None and rung.candidate.memory.fits,
            "p_fits": rung.candidate.p_fits if rung.candidate else None,
            "risk": rung.risk,
            "why_not": rung.why_not,
        }
        for rung in rungs
    ]


def rungs_table(rungs: Sequence[Rung], refused: bool = True) -> Table:
    """The changes; with ``refused`` also those that a rule refuses."""
    table = Table(("change", "frees GiB", "GPU time", "likely to fit", ""), right=frozenset({1, 2, 3}))
    for rung in rungs:
        change = " ".join(rung.overrides)
        if rung.candidate is not None:
            likely = f"{min(max(round(100 * rung.candidate.p_fits), 1), 99)} %"
            table.add(change, f"{rung.frees_gib:.1f}", f"{rung.slower:+.1%}", likely, rung.risk)
        elif refused:
            table.add(change, "", "", "", rung.why_not.removesuffix("."))
    return table
