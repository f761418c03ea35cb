"""``slipway explain``: why a run failed, from its logs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slipway.launch.cli.answer import Answer, Section, argument, command
from slipway.launch.cli.printing import Style, Terminal, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slipway.launch.diagnosis.diagnose import Diagnosis, Echo
    from slipway.launch.diagnosis.memory import MemoryVerdict
    from slipway.launch.diagnosis.reading import Sighting
    from slipway.launch.runs.status import Resume

MOST_RANKS_SHOWN = 8
LONGEST_SHOWN = 300  # characters of an evidence line on a terminal; --json has it whole
MEGABYTE = 1e6


@dataclass(frozen=True)
class Explained(Answer):
    """The first cause and what follows from it, what was read, the memory that lacked, and what a restart does."""

    diagnosis: Diagnosis
    memory: MemoryVerdict | None = None
    resume: Resume | None = None
    suspects: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        found, cause, known = self.diagnosis, self.diagnosis.cause, self.diagnosis.known
        return {
            "class": known.name if known else None,
            "title": known.title if known else None,
            "kind": known.kind.value if known else None,
            "rank": found.rank,
            "witness": found.witness,
            "host": found.host or None,
            "signal": found.signal or None,
            "step": cause.step if cause else None,
            "meaning": known.meaning if known else None,
            "action": known.action if known else None,
            "evidence": [_line_json(line) for line in found.evidence],
            "echoes": [
                {"class": echo.known.name, "lines": echo.lines, "ranks": list(echo.ranks)} for echo in found.echoes
            ],
            "missing_ranks": list(found.missing),
            "flight_recorder": found.desync.sentence() if found.desync else None,
            "memory": _memory_json(self.memory) if self.memory else None,
            "suspects": list(self.suspects),
            "resume": vars(self.resume) if self.resume else None,
            "last_step": found.last.step if found.last else None,
            "logs": [{"path": str(scan.path), "bytes": scan.size, "lines": scan.lines} for scan in found.scans],
        }

    def show(self, terminal: Terminal) -> None:
        show_cause(terminal, self.diagnosis)
        if self.diagnosis.known:
            terminal.field("means", self.diagnosis.known.meaning)
            if self.memory:
                _show_memory(terminal, self.memory)
            terminal.field("do", self.diagnosis.known.action)
            for number, suspect in enumerate(self.suspects):
                terminal.field("" if number else "suspect", suspect)
        for number, echo in enumerate(self.diagnosis.echoes):
            terminal.field("" if number else "follows", _echo_text(echo))
        if self.resume:
            terminal.field("next", self.resume.says)
            if self.resume.command:
                terminal.field("command", self.resume.command)
        self._show_read(terminal)

    def _show_read(self, terminal: Terminal) -> None:
        found = self.diagnosis
        if found.last:
            terminal.field(
                "reached", f"step {found.last.step}" + (f" of {found.last.total}" if found.last.total else "")
            )
        size = sum(scan.size for scan in found.scans) / MEGABYTE
        lines = sum(scan.lines for scan in found.scans)
        terminal.field("read", f"{plural(len(found.scans), 'log')}, {lines:,} lines, {size:,.2f} MB")


def _memory_json(memory: MemoryVerdict) -> dict[str, Any]:
    allocation, rung = memory.allocation, memory.rung
    return {
        "asked_gib": allocation.asked,
        "capacity_gib": allocation.capacity,
        "free_gib": allocation.free,
        "allocated_gib": allocation.allocated,
        "fragments_gib": allocation.unused,
        "missing_gib": memory.missing,
        "stage": memory.stage,
        "predicted_peak_gib": memory.predicted_peak,
        "predicted_needed_gib": memory.predicted_needed,
        "predicted_stages_gib": list(memory.predicted_stages),
        "predicted_fits": memory.fits,
        "change": list(memory.changes),
        "change_frees_gib": rung.frees_gib if rung else None,
        "change_slower": rung.slower if rung else None,
    }


def _show_memory(terminal: Terminal, memory: MemoryVerdict) -> None:
    allocation = memory.allocation
    parts = [f"asked for {allocation.asked:.2f} GiB"]
    if allocation.free is not None and allocation.capacity is not None:
        parts.append(
            f"{allocation.free:.2f} of {allocation.capacity:.2f} were free: {allocation.missing:.2f} GiB short"
        )
    if allocation.allocated is not None:
        parts.append(f"{allocation.allocated:.2f} in tensors")
    if allocation.unused is not None:
        parts.append(f"{allocation.unused:.2f} in fragments")
    terminal.field("memory", ", ".join(parts))
    if allocation.fragmented:
        terminal.field("", "the fragments would have held it: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True")
    if (allocation.others or 0) >= 1:
        terminal.field("", f"another process holds {allocation.others:.2f} GiB of this GPU")
    _show_predicted(terminal, memory)


def _show_predicted(terminal: Terminal, memory: MemoryVerdict) -> None:
    if memory.predicted_peak is None:
        return
    where = f" on stage {memory.stage}" if memory.stage is not None else ""
    stages = ", ".join(f"{gib:.1f}" for gib in memory.predicted_stages)
    of_all = f" (stages: {stages})" if len(memory.predicted_stages) > 1 else ""
    needs = f"the GPU needs {memory.predicted_needed:.1f} GiB, which {'fits' if memory.fits else 'does not fit'}"
    terminal.field("planned", f"allocator peak {memory.predicted_peak:.1f} GiB{where}{of_all}; {needs}")
    if memory.rung is None:
        text = f"no single change frees {memory.missing:.1f} GiB; slipway plan searches all layouts"
        terminal.field("change", text)
        return
    risk = f"; {memory.rung.risk}" if memory.rung.risk else ""
    gain = f"frees {memory.rung.frees_gib:.1f} GiB for {memory.rung.slower:+.1%} GPU time a token{risk}"
    terminal.field("change", f"{'; '.join(memory.changes)}: {gain}")


def show_cause(terminal: Terminal, found: Diagnosis) -> None:
    """Print the class of the first cause, where it was, and the lines that say so."""
    if found.known is None:
        terminal.field("cause", "no line that tells of a failure was found")
        return
    terminal.field("cause", f"{found.known.title} ({found.known.name}){where(found)}", Style.BAD)
    for number, line in enumerate(found.evidence):
        place = f"{line.path}:{line.number}"
        terminal.field("" if number else "line", place)
        terminal.field("", _shortened(line.text))
    if found.desync:
        if all(line.text != found.desync.sentence() for line in found.evidence):
            terminal.field("recorder", found.desync.sentence())
    elif found.missing:
        terminal.field("missing", f"{_ranks(found.missing)} did not enter the collective that the others wait for")


def where(found: Diagnosis) -> str:
    """Rank, host, signal and step of the first cause, as the end of a sentence; empty where none is known."""
    cause = found.cause
    parts = []
    if found.rank is not None:
        parts.append(f"rank {found.rank}")
    elif found.witness is not None:
        parts.append(f"noticed by rank {found.witness}")
    if found.host:
        parts.append(f"on {found.host}")
    text = " ".join(parts)
    more = [found.signal] if found.signal else []
    if cause and cause.step is not None:
        more.append(f"step {cause.step}")
    joined = ", ".join(filter(None, [text, *more]))
    return f": {joined}" if joined else ""


def _line_json(line: Sighting) -> dict[str, Any]:
    return {
        "path": str(line.path),
        "line": line.number,
        "class": line.known.name,
        "rank": line.rank,
        "step": line.step,
        "text": line.text,
    }


def _echo_text(echo: Echo) -> str:
    on = f" on {_ranks(echo.ranks)}" if echo.ranks else ""
    return f"{echo.known.title}{on} ({plural(echo.lines, 'line')})"


def _ranks(ranks: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, ranks[:MOST_RANKS_SHOWN]))
    more = f" and {len(ranks) - MOST_RANKS_SHOWN} more" if len(ranks) > MOST_RANKS_SHOWN else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + " ..."


@command(Section.RESULTS)
@argument(
    "paths",
    "Logs, folders of logs, a run's folder, or dumps of torch's flight recorder.",
    nargs=-1,
    required=True,
    type=Path,
    metavar="LOG|RUN...",
)
def explain(paths: tuple[Path, ...]) -> Answer:
    """Say why a run failed: the first cause in its logs.

    Reads the logs of every rank and of SLURM, also of runs that other tools started, in bounded memory, and names
    the class of the failure, the rank, the lines that say so, and what to do next.
    """
    from slipway.configs import Refusal
    from slipway.launch.diagnosis.diagnose import diagnose
    from slipway.launch.diagnosis.flight_recorder import desync_in, is_dump
    from slipway.launch.diagnosis.memory import memory_of
    from slipway.launch.diagnosis.of_run import scans_of_run, world_of
    from slipway.launch.diagnosis.reading import scan
    from slipway.launch.diagnosis.sources import dumps_below, logs_below
    from slipway.launch.diagnosis.suspects import suspects_of
    from slipway.launch.runs.read import is_run
    from slipway.launch.runs.status import resume_of

    scans, world = [], 0
    run: Path | None = None
    dumps: list[Path] = []
    for path in paths:
        dumps += dumps_below(path) if path.is_dir() else []
        if is_dump(path):
            dumps.append(path)
        elif path.is_dir() and is_run(path):
            scans += scans_of_run(path)
            run, world = path, max(world, world_of(path))
        else:
            scans += [scan(log) for log in (logs_below(path) if path.is_dir() else [path])]
    if not scans and not dumps:
        raise Refusal(f"{paths[0]} holds no log", "Give a log, or a folder with files named .log, .out, .err or .txt.")
    found = diagnose(scans, world, desync_in(dumps))
    return Explained(found, memory_of(found, run), resume_of(run) if run else None, suspects_of(found, run))
