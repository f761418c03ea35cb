"""The record of submissions in a run's folder: one line each, with the time, job, code and settings."""

from __future__ import annotations

import json
import time
from pathlib import Path

from slipway.configs.load import record_of
from slipway.launch.executors.protocol import Launch, Submission
from slipway.recipes.runtime import source as code

LAUNCHES = "slipway/launches.jsonl"  # in the run's folder


def record(launch: Launch, submission: Submission) -> None:
    """Append one line to the run's record, unless the launch is not to be recorded."""
    if not launch.recorded:
        return
    path = launch.run_dir / LAUNCHES
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "job": submission.job,
        "command": launch.command,
        "folder": str(Path.cwd()),
        "experiment": str(submission.folder),
        "outlook": launch.outlook,
        "source": code.source(),
        "recipe": record_of(launch.spec),
        "set_by": {key: who for key, who in launch.provenance.items() if who != "default"},
    }
    with path.open("a") as f:
        f.write(json.dumps(line) + "\n")


def log_folder(launch: Launch) -> Path:
    """The folder that holds the logs of the last submission."""
    lines = (launch.run_dir / LAUNCHES).read_text().splitlines()
    return Path(json.loads(lines[-1])["experiment"])
