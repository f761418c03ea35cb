"""``slipway doctor``: what is installed and what is on this machine, against what should be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import Answer, Section, argument, command, overrides_argument
from slipway.launch.cli.nemo import quiet, require_nemo
from slipway.launch.cli.printing import Style, Table, Terminal, note

if TYPE_CHECKING:
    from slipway.launch.doctor.finding import Finding
    from slipway.launch.doctor.sniff import Rank

MEASURED_BY_DEFAULT = "llama3_tiny"  # --sniff without a recipe


@dataclass(frozen=True)
class Examined(Answer):
    """What was found on this machine."""

    findings: list[Finding]

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(finding) for finding in self.findings]

    def show(self, terminal: Terminal) -> None:
        table = Table(("", "subject", "found", "expected", "fix"))
        for finding in self.findings:
            mark, fix = ("ok", "") if finding.good else ("slow" if finding.slows else "!!", finding.fix)
            table.add(mark, finding.subject, finding.found, finding.wanted, fix)
        terminal.table(table)
        if any(finding.slows and not finding.good for finding in self.findings):
            terminal.line("slow: costs time, and stops no run", Style.WARNING)

    def conclude(self) -> None:
        from slipway.configs import Refusal

        bad = [finding for finding in self.findings if not finding.good and not finding.slows]
        if bad:
            first = f"{bad[0].subject} ({bad[0].found})"
            raise Refusal(
                f"{len(bad)} of {len(self.findings)} checks failed, first {first}", f"To fix it: {bad[0].fix}"
            )


@dataclass(frozen=True)
class Measured(Answer):
    """What every rank measured, and a sentence for each that is slow."""

    ranks: list[Rank]
    slow: list[str]

    def as_json(self) -> dict[str, Any]:
        return {"ranks": [asdict(rank) for rank in self.ranks], "slow": self.slow}

    def show(self, terminal: Terminal) -> None:
        head = ("rank", "node", "device", "matrix products TFLOP/s", "to the next rank GB/s")
        table = Table(head, right=frozenset({0, 3, 4}))
        for rank in self.ranks:
            table.add(
                str(rank.rank), rank.node, rank.device, f"{rank.gemm_tflops:.3g}", f"{rank.neighbour_gb_per_s:.3g}"
            )
        terminal.table(table)
        for line in self.slow or ["no rank is slow"]:
            terminal.line(line)

    def conclude(self) -> None:
        if self.slow:
            raise click.exceptions.Exit(1)


@command(Section.SETUP)
@argument("name", "A recipe whose needs this machine and its cluster must meet.", metavar="[NAME]", default="")
@overrides_argument
@click.option(
    "--only",
    default="",
    metavar="SECTIONS",
    help="Examine only some sections, for example packages,gpu,slurm.",
)
@click.option(
    "--sniff",
    is_flag=True,
    help="Measure matrix products and collectives on every rank of the cluster, and name the slow ones.",
)
def doctor(name: str, overrides: tuple[str, ...], only: str, sniff: bool) -> Answer:
    """Examine this machine and its packages.

    Names the line that fixes each fault. Exits with 2 if one stops runs, and with 0 if all that is found slows them.
    """
    from slipway.launch.doctor.examine import examine

    if "=" in name:  # overrides without a recipe
        name, overrides = "", (name, *overrides)
    if sniff:
        return _measure(name or MEASURED_BY_DEFAULT, list(overrides))
    spec = None
    if name:
        from slipway import configs, planner

        spec = planner.complete(configs.load(name, list(overrides)))
    return Examined(examine(only, spec))


def _measure(name: str, overrides: list[str]) -> Answer:
    require_nemo("doctor --sniff")
    with quiet():
        from slipway.launch.doctor import sniff
        from slipway.launch.executors import submit
    note("measuring every rank ...")
    ranks = submit.sniff(name, overrides)
    return Measured(ranks, sniff.slow(ranks))
