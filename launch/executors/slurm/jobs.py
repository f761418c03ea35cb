"""A job's state and its log, through every restart."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

SETTLED_S = 15.0  # a job that requeues itself is FAILED for a moment
CLIENT_TIMEOUT_S = 60
ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
)


def _printed(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S, check=False)
    return done.stdout


def state_of(job: str) -> str:
    """SLURM's word for the state of a job's current or last attempt; empty while accounting does not know the job.

    Of an array: a task that has not ended, else one that did not succeed.
    """
    states = _printed("squeue", "-h", "-j", job, "-o", "%T").split()
    if not states or all(state in ENDED for state in states):
        lines = _printed("sacct", "-X", "-n", "-P", "-j", job, "-o", "State").splitlines()
        states = [line.split()[0] for line in lines if line.split()]
    running = [state for state in states if state not in ENDED]
    unsuccessful = [state for state in states if state != "COMPLETED"]
    return (running or unsuccessful or states or [""])[0]


def follow(job: str, folder: Path, *, every_s: float = 2.0) -> str:
    """Print the job's log as it grows, through every restart, until the job ends. Returns its final state."""
    printed: dict[Path, int] = {}  # bytes of each log
    state, since = "", time.monotonic()
    while True:
        now = state_of(job)
        if now != state:
            print(f"job {job}: {now.lower() or 'not yet known'}", file=sys.stderr, flush=True)
            state, since = now, time.monotonic()
        for log in sorted(folder.rglob(f"log-*_{job}_*.out")):
            with log.open("rb") as f:
                f.seek(printed.get(log, 0))
                sys.stdout.write(f.read().decode(errors="replace"))
                printed[log] = f.tell()
        sys.stdout.flush()
        if now == "COMPLETED" or (now in ENDED and time.monotonic() - since >= SETTLED_S):
            return now
        time.sleep(every_s)
