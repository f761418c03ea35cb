"""What SLURM says of a job: its state, exit code, nodes and restarts, from squeue and sacct."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

_TIMEOUT_S = 20
_LIVE_FORMAT = "%T|%r|%N|%S|%l|%M"
_PAST = "State,ExitCode,DerivedExitCode,NodeList,Start,End,Elapsed"


@dataclass(frozen=True)
class JobFacts:
    """The current or last attempt of a job.

    Attributes:
        state: SLURM's word, such as PENDING, RUNNING, FAILED, TIMEOUT.
        reason: why it waits, or who cancelled it.
        exit_code: of the batch script, as SLURM writes it: code:signal.
        nodes: as SLURM lists them, such as n[1-4].
        attempts: how often it was started, as far as accounting knows.
        start: when the attempt began, or is expected to begin.
        elapsed: how long it has run.
    """

    job: str
    state: str
    reason: str = ""
    exit_code: str = ""
    nodes: str = ""
    attempts: int = 0
    start: str = ""
    elapsed: str = ""

    @property
    def waits(self) -> bool:
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")

    @property
    def runs(self) -> bool:
        return self.state in ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STAGE_OUT", "SIGNALING")

    @property
    def failed(self) -> bool:
        """It ended by a failure of its own or of a node; not because somebody, or the time limit, ended it."""
        return self.state in ("FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")

    def describe(self) -> str:
        """The facts in one line."""
        parts = [f"job {self.job} {self.state}"]
        if self.exit_code and not self.waits and not self.runs:
            parts.append(f"exit code {self.exit_code}")
        if self.reason not in ("", "None"):
            parts.append(self.reason)
        if self.nodes:
            parts.append(f"on {self.nodes}")
        if self.elapsed and not self.waits:
            parts.append(f"for {self.elapsed}")
        if self.start and self.waits and self.start != "N/A":
            parts.append(f"expected to start {self.start}")
        if self.attempts > 1:
            parts.append(f"{self.attempts} attempts")
        return ", ".join(parts)


def facts_of(job: str) -> JobFacts | None:
    """What SLURM says of a job; None where there is no SLURM here, or it does not know the job."""
    past = _past(job)
    last = past[-1] if past else None
    attempts = sum(not row[0].startswith("PENDING") for row in past)
    lines = _printed("squeue", "-h", "-j", job, "-o", _LIVE_FORMAT)
    if lines:
        state, reason, nodes, start, _, elapsed = (lines[0].split("|") + [""] * 6)[:6]
        ended = JobFacts(job, state).waits or JobFacts(job, state).runs
        if ended or last is None:
            return JobFacts(job, state, reason, "", nodes, attempts, start, elapsed)
    if last is None:
        return None
    state, _, reason = last[0].partition(" ")
    return JobFacts(
        job, state, reason, last[1], last[3] if last[3] != "None assigned" else "", attempts, last[4], last[6]
    )


def _past(job: str) -> list[list[str]]:
    """The rows of sacct for a job, one for each attempt, the last one last."""
    rows = [line.split("|") for line in _printed("sacct", "-X", "-D", "-n", "-P", "-j", job, "-o", _PAST)]
    return [row for row in rows if len(row) == len(_PAST.split(","))]


def _printed(*words: str) -> list[str]:
    """The lines that a SLURM command prints; none where there is no such command or it fails."""
    if shutil.which(words[0]) is None:
        return []
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
