"""The logs of a run, or below a folder."""

from __future__ import annotations

from pathlib import Path

from slipway.configs import Refusal
from slipway.configs.files import json_object
from slipway.launch.diagnosis.flight_recorder import is_dump

SUFFIXES = (".log", ".out", ".err", ".txt", ".gz")
_WHOLE = "combined.log"  # NeMo-Run's: what the other files of its folder hold in parts
_LAUNCHES = Path("slipway/launches.jsonl")  # as slipway.launch.executors.submissions writes it
_NOT_LOGS = ("cmd-args.log", "lightning_logs.txt", "git-info.txt")
MOST_FILES = 20_000


def is_log(path: Path) -> bool:
    """Whether a file is a log, by its name."""
    return path.name.endswith(SUFFIXES) and path.name not in _NOT_LOGS


def logs_below(folder: Path) -> list[Path]:
    """The logs in a folder and its folders, without those that repeat a combined log, and the newest attempt last.

    Raises:
        Refusal: there are too many files to be the logs of one run.
    """
    found: list[Path] = []
    for path in folder.rglob("*"):
        if path.is_file() and is_log(path):
            found.append(path)
            if len(found) > MOST_FILES:
                raise Refusal(f"{folder} holds more than {MOST_FILES:,} logs", "Give the logs of one run.")
    combined = {path.parents[2] for path in found if path.name == _WHOLE}
    kept = [path for path in found if path.name == _WHOLE or not any(folder in path.parents for folder in combined)]
    return sorted(kept, key=lambda path: path.stat().st_mtime)


def dumps_below(folder: Path) -> list[Path]:
    """The files of NCCL's flight recorder in a folder and its folders."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and is_dump(path))


def last_launch(run: Path) -> dict[str, object]:
    """The last submission of a run, as its folder records it; empty without one."""
    try:
        lines = (run / _LAUNCHES).read_text().splitlines()
        return json_object(lines[-1], str(_LAUNCHES)) if lines else {}
    except (OSError, UnicodeDecodeError, Refusal):
        return {}


def logs_of_run(run: Path) -> list[Path]:
    """The logs of a run's last submission, wherever they are, and those in its folder."""
    launched = last_launch(run)
    experiment = Path(str(launched.get("experiment") or ""))
    outside = logs_below(experiment) if experiment.is_absolute() and experiment.is_dir() else []
    job = str(launched.get("job") or "")
    if job:
        outside = [path for path in outside if f"_{job}_" in path.name or f"_{job}." in path.name] or outside
    return [*outside, *logs_below(run)]
