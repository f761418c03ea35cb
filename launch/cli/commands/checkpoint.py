"""``slipway checkpoint``: a run's checkpoints listed, compared with their checksums, and pruned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import Answer, Section, argument, command, command_group
from slipway.launch.cli.printing import Style, Table, Terminal
from slipway.launch.cli.progress import transfer_bar

if TYPE_CHECKING:
    from slipway.launch.runs.checkpoints import Kept

checkpoint = command_group(__name__, Section.RESULTS, "List, verify and prune the checkpoints of a run.")


def _as_json(kept: Kept) -> dict[str, Any]:
    return {
        "name": kept.name,
        "step": kept.step,
        "bytes": kept.size,
        "files": kept.files,
        "checksums": kept.sums,
        "whole": not kept.wrong,
        "wrong": kept.wrong,
    }


@dataclass(frozen=True)
class Listed(Answer):
    """The checkpoints of a run, the newest first."""

    checkpoints: list[Kept]

    def as_json(self) -> list[dict[str, Any]]:
        return [_as_json(each) for each in self.checkpoints]

    def show(self, terminal: Terminal) -> None:
        table = Table(("checkpoint", "step", "GB", "files", "checksums", "state"), right=frozenset({1, 2, 3, 4}))
        for each in self.checkpoints:
            size, state = f"{each.size / 1e9:,.3f}", each.wrong or "whole"
            table.add(each.name, f"{each.step:,}", size, str(each.files), str(each.sums), state)
        terminal.table(table)


@command(Section.RESULTS, name="list", group=checkpoint)
@argument("run", "A run's folder.", type=Path)
def list_(run: Path) -> Answer:
    """List a run's checkpoints, the newest first, and what is wrong with them as far as names and sizes show."""
    from slipway.launch.runs.checkpoints import kept

    return Listed(kept(run))


@dataclass(frozen=True)
class Verified(Answer):
    """What differs from its checksum: for each checkpoint, file -> what is wrong."""

    run: Path
    found: list[tuple[Kept, dict[str, str]]]

    def as_json(self) -> list[dict[str, Any]]:
        return [_as_json(kept) | {"whole": self._good(kept, wrong), "files_wrong": wrong} for kept, wrong in self.found]

    def show(self, terminal: Terminal) -> None:
        for kept, wrong in self.found:
            if self._good(kept, wrong):
                said = f"whole: {kept.sums} files have their SHA-256" if kept.sums else "unchecked: it has no checksums"
                terminal.field(kept.name, said, Style.GOOD if kept.sums else Style.WARNING)
                continue
            if kept.wrong:
                terminal.field(kept.name, kept.wrong, Style.BAD)
            for name, what in wrong.items():
                terminal.field(kept.name, f"{name} {what}", Style.BAD)

    def conclude(self) -> None:
        from slipway.configs import Refusal
        from slipway.recipes.runtime.checkpoint_files import BEING_WRITTEN

        bad = [kept for kept, wrong in self.found if not self._good(kept, wrong) and kept.wrong != BEING_WRITTEN]
        if bad:
            good = next((kept.name for kept, wrong in self.found if self._good(kept, wrong)), "")
            older = f"The newest whole one is {good}, from which a run resumes." if good else "None is whole."
            raise Refusal(f"{self.run} has {len(bad)} damaged of {len(self.found)} checkpoints", older)

    @staticmethod
    def _good(kept: Kept, wrong: dict[str, str]) -> bool:
        return not kept.wrong and not wrong


@command(Section.RESULTS, name="verify", group=checkpoint)
@argument("run", "A run's folder, or the folder of one checkpoint.", metavar="RUN|CHECKPOINT", type=Path)
def verify(run: Path) -> Answer:
    """Read every file of a run's checkpoints and compare it with its SHA-256.

    The sums are in weights/SHA256SUMS, so that sha256sum -c reads them too. Exits with 2 if a checkpoint is damaged.
    """
    from slipway.launch.runs.checkpoints import bytes_to_read, kept, verified

    there = kept(run)
    with transfer_bar("verifying") as bar:
        task = bar.add_task("", total=sum(map(bytes_to_read, there)))
        found = [(each, verified(each, lambda size: bar.advance(task, size))) for each in there]
    return Verified(run, found)


@dataclass(frozen=True)
class Pruned(Answer):
    """What was removed, or would be."""

    removed: list[Kept]
    done: bool

    def as_json(self) -> dict[str, Any]:
        size = sum(each.size for each in self.removed)
        return {"removed": [each.name for each in self.removed], "bytes": size, "done": self.done}

    def show(self, terminal: Terminal) -> None:
        size = sum(each.size for each in self.removed) / 1e9
        names = ", ".join(each.name for each in self.removed) or "nothing"
        if self.done or not self.removed:
            terminal.line(f"removed {names}: {size:,.3f} GB")
        else:
            terminal.line(f"would remove {names}: {size:,.3f} GB; --yes removes it")


@command(Section.RESULTS, name="prune", group=checkpoint)
@argument("run", "A run's folder.", type=Path)
@click.option("--keep", type=click.IntRange(min=1), default=1, show_default=True, help="Newest whole ones to keep.")
@click.option("--damaged", is_flag=True, help="Remove those that cannot be loaded, too.")
@click.option("--yes", is_flag=True, help="Remove them; without it, only say what would be removed.")
def prune(run: Path, keep: int, damaged: bool, yes: bool) -> Answer:
    """Remove a run's older checkpoints, of a run that does not train now."""
    from slipway.launch.runs.checkpoints import remove, superfluous

    found = superfluous(run, keep, damaged)
    if yes:
        for each in found:
            remove(each)
    return Pruned(found, yes)
