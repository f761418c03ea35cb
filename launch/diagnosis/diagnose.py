"""The first cause among everything that the logs of a run say, and what follows from it.

A line may be a cause, the death of a process, an error, a symptom, the scheduler's ending, or an echo. Of two kinds the
more telling counts, whatever their order: a rank that is killed is logged by torchrun seconds after its neighbours have
lost the connection to it. Of one kind the earliest counts. What was followed by further steps did not end the run, a
warning only counts where there is nothing else, and what a rank prints after the scheduler has ended its job follows
from that.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from slipway.launch.diagnosis.classes import FailureClass, Kind, failure_classes
from slipway.launch.diagnosis.flight_recorder import Desync
from slipway.launch.diagnosis.progress import Step
from slipway.launch.diagnosis.reading import Scan, Sighting
from slipway.launch.diagnosis.torchelastic import Exit

HANGS = "collective-timeout"  # the class of a collective that did not end
_ORDER = tuple(Kind)
_SIGNAL = re.compile(r"\bSIG[A-Z]+\b")
_BEFORE_THE_ENDING_S = 5.0  # a failure this long before the scheduler's ending is not its consequence


@dataclass(frozen=True)
class Echo:
    """What follows from the first cause: a class, the ranks on which it was seen, and how often."""

    known: FailureClass
    lines: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Diagnosis:
    """Why a run ended.

    Attributes:
        cause: the line that says so; None where no log says anything.
        known: the class of the failure; another than that of ``cause`` where that only shows that a rank is gone.
        rank, host: of the rank that failed, where a log says or leaves only one.
        witness: the rank that noticed it, where it is not known which rank failed.
        evidence: further lines of the same class, or of the same rank before it.
        echoes: the classes that follow from it.
        missing: ranks that a collective waited for.
        last: the last step that was reported.
    """

    cause: Sighting | None = None
    known: FailureClass | None = None
    rank: int | None = None
    witness: int | None = None
    host: str = ""
    signal: str = ""
    evidence: tuple[Sighting, ...] = ()
    echoes: tuple[Echo, ...] = ()
    missing: tuple[int, ...] = ()
    desync: Desync | None = None
    last: Step | None = None
    exits: tuple[Exit, ...] = ()
    scans: tuple[Scan, ...] = field(default=(), repr=False)


def diagnose(scans: list[Scan], world: int = 0, desync: Desync | None = None) -> Diagnosis:
    """The first cause that the logs of one run name, and its echoes.

    Args:
        world: the number of ranks, where it is known.
        desync: what the ranks' flight recorders say.
    """
    exits = [one for scan in scans for one in scan.exits]
    last = max((scan.last for scan in scans if scan.last), key=lambda step: step.step, default=None)
    seen = [(scan, death) for scan in scans for death in _deaths(scan)]
    seen += [(scan, sighting) for scan in scans for sighting in scan.sightings]
    if desync is not None and not any(one.known.name == HANGS for _, one in seen):
        seen.append(_hang(desync))
    if not seen:
        return Diagnosis(last=last, exits=tuple(exits), scans=tuple(scans))
    ordered = _ordered(seen)
    cause = ordered[0]
    exit_ = _exit_of(cause, exits)
    rank = _rank_of(cause, exits, scans)
    known, witness = cause.known, None
    if known.kind is Kind.echo:
        rank, witness = _silent(ordered, world), rank
        known = failure_classes()["vanished"] if rank is not None else known
    missing = desync.missing if desync else _missing(scans)
    if known.name == HANGS:
        rank, witness = missing[0] if len(missing) == 1 else None, rank
    return Diagnosis(
        cause=cause,
        known=known,
        rank=exit_.rank if rank is None and exit_ is not None and known.name != HANGS else rank,
        witness=witness,
        host=cause.host or (exit_.host if exit_ and exit_.host != "localhost" else ""),
        signal=_signal_of(cause, exit_),
        evidence=_evidence(cause, ordered),
        echoes=_echoes(cause, ordered, scans),
        missing=missing,
        desync=desync,
        last=last,
        exits=tuple(exits),
        scans=tuple(scans),
    )


def _ordered(seen: list[tuple[Scan, Sighting]]) -> list[Sighting]:
    """The lines of all logs, the most telling first."""
    endings = [
        sighting for scan, sighting in seen if sighting.known.kind is Kind.ending and not _survived(scan, sighting)
    ]
    ending = min(endings, key=_when, default=None)

    def weight(pair: tuple[Scan, Sighting]) -> tuple[bool, bool, int, float, int]:
        scan, sighting = pair
        after = ending is not None and sighting is not ending and _follows(sighting, ending)
        rank = _ORDER.index(Kind.echo if after else sighting.known.kind)
        return _survived(scan, sighting), sighting.warning, rank, _when(sighting), sighting.offset

    return [sighting for _, sighting in sorted(seen, key=weight)]


def _hang(desync: Desync) -> tuple[Scan, Sighting]:
    """What the flight recorders say, as a line of a log."""
    known, path, text = failure_classes()[HANGS], Path("flight recorder"), desync.sentence()
    return Scan(path), Sighting(known=known, path=path, number=1, offset=0, text=text, message=text)


def _deaths(scan: Scan) -> list[Sighting]:
    """Ranks that a summary of torchrun says were killed or crashed, as sightings."""
    classes = failure_classes()
    found = []
    for one in scan.exits:
        if not one.by_itself or one.code >= 0:
            continue
        known = classes[{-9: "killed", -6: "aborted"}.get(one.code, "crashed")]
        line = next((s for s in scan.sightings if s.known is known and s.detail.get("pid") == str(one.pid)), None)
        if line is None:
            line = next((s for s in scan.sightings if s.known is known), None)
        number, offset = (line.number, line.offset) if line else (scan.lines, scan.size)
        text = line.text if line else f"exitcode: {one.code} (pid: {one.pid}) ({one.signal_name})"
        found.append(
            Sighting(
                known=known,
                path=scan.path,
                number=number,
                offset=offset,
                text=text,
                message=text,
                rank=one.rank,
                host="" if one.host == "localhost" else one.host,
                step=scan.last.step if scan.last else None,
                when=one.when,
                detail={"pid": str(one.pid)},
            )
        )
    return found


def _survived(scan: Scan, sighting: Sighting) -> bool:
    """Whether training went on after a line, in the same log, by more than the step that was under way."""
    if sighting.known.lasts or scan.last is None or scan.last.offset < sighting.offset:
        return False
    if sighting.step is None:
        return True
    return scan.last.step > sighting.step + 1 or scan.last.step < sighting.step


def _when(sighting: Sighting) -> float:
    return sighting.when if sighting.when is not None else float("inf")


def _follows(sighting: Sighting, ending: Sighting) -> bool:
    """Whether a line comes after the scheduler's ending of the job: by its place in the same log, else by its time."""
    if sighting.path == ending.path:
        return sighting.offset > ending.offset
    if sighting.when is None or ending.when is None:
        return False
    return sighting.when > ending.when - _BEFORE_THE_ENDING_S


def _silent(ordered: list[Sighting], world: int) -> int | None:
    """The one rank that did not say that it lost a connection; None where there are several, or it is not known."""
    spoke = {sighting.rank for sighting in ordered if sighting.rank is not None and not sighting.warning}
    silent = set(range(world)) - spoke
    return silent.pop() if len(silent) == 1 and spoke else None


def _exit_of(cause: Sighting, exits: list[Exit]) -> Exit | None:
    """How the rank of the cause ended: by its process, by its rank, or of a death because no other rank died."""
    pid = cause.detail.get("pid")
    by_pid = next((one for one in exits if pid and str(one.pid) == pid), None)
    by_rank = next((one for one in exits if cause.rank is not None and one.rank == cause.rank), None)
    died = {one.rank: one for one in exits if one.by_itself and one.code < 0}
    only = next(iter(died.values())) if len(died) == 1 and cause.known.kind is Kind.death else None
    return by_pid or by_rank or only


def _signal_of(cause: Sighting, exit_: Exit | None) -> str:
    """What killed a rank, by torchrun's summary, else by the line itself: torchrun may observe the neighbour only."""
    if cause.known.kind is not Kind.death:
        return ""
    named = _SIGNAL.search(cause.text)
    return (exit_.signal_name if exit_ else "") or (named[0] if named else "")


def _rank_of(cause: Sighting, exits: list[Exit], scans: list[Scan]) -> int | None:
    """The global rank of the cause. A local rank is one, where all ranks are on one host."""
    if cause.rank is not None or cause.local_rank is None:
        return cause.rank
    same = {one.rank for one in exits if one.local_rank == cause.local_rank}
    if same:
        return same.pop() if len(same) == 1 else None
    ranks = {sighting.rank for scan in scans for sighting in scan.sightings if sighting.rank is not None}
    return cause.local_rank if all(rank < 16 for rank in ranks) else None


def _evidence(cause: Sighting, ordered: list[Sighting]) -> tuple[Sighting, ...]:
    """At most three lines: the cause's, others of its class, and what its rank said beside it."""
    others = [s for s in ordered[1:] if s.text != cause.text and s.known is cause.known]
    others += [s for s in ordered[1:] if s.rank is not None and s.rank == cause.rank and s.known is not cause.known]
    return (cause, *others[:2])


def _echoes(cause: Sighting, ordered: list[Sighting], scans: list[Scan]) -> tuple[Echo, ...]:
    counts: Counter[str] = Counter()
    for scan in scans:
        counts.update(scan.counts)
    ranks: dict[str, set[int]] = {}
    for sighting in ordered:
        if not sighting.warning and sighting.known is not cause.known:
            ranks.setdefault(sighting.known.name, set())
            if sighting.rank is not None:
                ranks[sighting.known.name].add(sighting.rank)
    classes = failure_classes()
    return tuple(Echo(classes[name], max(counts[name], 1), tuple(sorted(of))) for name, of in ranks.items())


def _missing(scans: list[Scan]) -> tuple[int, ...]:
    """The ranks that a collective waited for: those whose own work ends before what the others wait for.

    A rank that said nothing at all is missing too, where most of those below the last did.
    """
    waiting = {rank: one for scan in scans for rank, one in scan.waiting.items()}
    if not waiting:
        return ()
    behind = {rank: one.enqueued for rank, one in waiting.items() if one.enqueued >= 0}
    waited_for = Counter(one.sequence for one in waiting.values()).most_common(1)[0][0]
    late = tuple(sorted(rank for rank, enqueued in behind.items() if enqueued < waited_for))
    if late:
        return late
    silent = tuple(rank for rank in range(max(waiting)) if rank not in waiting)
    return silent if len(silent) < len(waiting) else ()
