"""The diagnosis of a run's folder: its logs, the record of its failure, and what its ranks left behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from slipway.configs import Refusal
from slipway.configs.convert import MOST_DIGITS
from slipway.configs.files import parse_json
from slipway.configs.schema.spec import MOST_GPUS
from slipway.launch.diagnosis.classes import Kind, classify, failure_classes
from slipway.launch.diagnosis.diagnose import Diagnosis, diagnose
from slipway.launch.diagnosis.flight_recorder import desync_in
from slipway.launch.diagnosis.reading import Scan, Sighting, scan
from slipway.launch.diagnosis.sources import dumps_below, logs_of_run
from slipway.recipes.runtime.run_files import FAILURE, RECORD


def diagnose_run(run: Path) -> Diagnosis:
    """Why a run ended, from its folder and the logs of its last submission.

    Raises:
        Refusal: a log cannot be read.
    """
    return diagnose(scans_of_run(run), world_of(run), desync_in(dumps_below(run)))


def scans_of_run(run: Path) -> list[Scan]:
    """What a run's logs and the record of its failure say.

    Raises:
        Refusal: a log cannot be read.
    """
    recorded = recorded_failure(run)
    return [scan(path) for path in logs_of_run(run)] + ([recorded] if recorded else [])


def world_of(run: Path) -> int:
    """The ranks that a run had when it was last started; 0 where its record does not say."""
    try:
        world = parse_json(run / RECORD).get("world_size")
    except Refusal:
        return 0
    return world if isinstance(world, int) and 0 < world <= MOST_GPUS else 0


def sentence(found: Diagnosis) -> str:
    """Why a run failed, in one line: the step, the rank, its host, and what was said; empty where nothing is known."""
    cause, known = found.cause, found.known
    if cause is None or known is None:
        return ""
    said = cause.message if known.kind not in (Kind.death, Kind.echo) else known.title
    parts = [f"in step {cause.step}"] if cause.step is not None else []
    if found.rank is not None:
        parts.append(f"on rank {found.rank}" + (f" of {found.host}" if found.host else ""))
    elif found.witness is not None:
        parts.append(f"noticed by rank {found.witness}")
    signal = f" ({found.signal})" if found.signal else ""
    return f"{', '.join(parts)}: {said}{signal}" if parts else f"{said}{signal}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 10**MOST_DIGITS else None


def recorded_failure(run: Path) -> Scan | None:
    """The error that the first rank to notice one has recorded, as a log of one line; None without one."""
    path = run / FAILURE
    if not path.is_file():
        return None
    try:
        stored = parse_json(path)
    except Refusal:
        stored = {"message": "the record of the failure cannot be read"}
    error, message, host = (_text(stored.get(key)) for key in ("error", "message", "host"))
    error = error or "Error"
    rank, step = (_count(stored.get(key)) for key in ("rank", "step"))
    text = f"{error}: {message}"
    known = (classify(text) or (failure_classes()["python-error"],))[0]
    sighting = Sighting(
        known=known,
        path=path,
        number=1,
        offset=0,
        text=text,
        message=text,
        rank=rank,
        host=host,
        step=step,
        when=None,
    )
    return Scan(path, size=path.stat().st_size, lines=1, sightings=[sighting], counts=Counter({known.name: 1}))
