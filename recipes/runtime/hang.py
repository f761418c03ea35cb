"""What a warden does when its rank has made no step for too long: gather every rank's state, and name the culprit.

Like :mod:`.warden`, which it belongs to, it imports the standard library only, and finds its file beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

DUMP = signal.SIGRTMIN + 4  # makes a rank write its stacks
DUMP_S = 1.0  # for a rank to do so
GATHER_S = 5.0  # for the wardens of all ranks to report: they notice within a step of each other
TELL_S = 2.0  # from the verdict to the kill
_WAITS = re.compile(
    r"distributed_c10d|torch/distributed|megatron/core/(?:pipeline_parallel|tensor_parallel/mappings)|"
    r"autograd/graph\.py"
)  # a stack whose innermost frames are these waits for others
_FRAME = re.compile(r'File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)')
_INNERMOST = 8  # frames


@dataclass(frozen=True)
class Report:
    """The state of one rank at a hang.

    Attributes:
        state: of the process: T where it was stopped, D in the kernel, R, S.
        stack: of all threads, as faulthandler writes it.
    """

    rank: int
    host: str
    pid: int
    step: int
    state: str
    stack: str

    @property
    def stopped(self) -> bool:
        return self.state in "Tt"

    @property
    def main(self) -> list[str]:
        """The frames of the main thread, which is the last that faulthandler writes, the innermost first."""
        last = re.split(r"^(?:Current thread|Thread) ", self.stack, flags=re.MULTILINE)[-1]
        return [match[0] for match in _FRAME.finditer(last)]

    @property
    def waits(self) -> bool:
        return any(_WAITS.search(frame) for frame in self.main[:_INNERMOST])


def stack_of(pid: int, memory: int, stopped: bool) -> str:
    """Let a process write its stacks into ``memory``, a file that both have open. A stopped one is let go on for it."""
    os.ftruncate(memory, 0)
    with contextlib.suppress(OSError):
        os.kill(pid, DUMP)
        if stopped:
            os.kill(pid, signal.SIGCONT)
        time.sleep(DUMP_S)
        if stopped:
            os.kill(pid, signal.SIGSTOP)
    return os.pread(memory, 1 << 20, 0).decode(errors="replace")


def publish(folder: Path, report: Report) -> None:
    """Let the other wardens read a report."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"rank-{report.rank:05d}.tmp"
    temporary.write_text(json.dumps(asdict(report)))
    temporary.replace(temporary.with_suffix(".json"))


def gather(folder: Path, world: int) -> list[Report]:
    """The reports of all ranks, or those that came in time."""
    end = time.monotonic() + GATHER_S
    while len(list(folder.glob("rank-*.json"))) < world and time.monotonic() < end:
        time.sleep(0.1)
    return [Report(**json.loads(path.read_text())) for path in sorted(folder.glob("rank-*.json"))]


def verdict(reports: list[Report], world: int, limit_s: float) -> tuple[int, str]:
    """The rank that holds the others up, and what is known of it, in one sentence."""
    missing = sorted(set(range(world)) - {each.rank for each in reports})
    behind = min(reports, key=lambda each: each.step)
    late = f"no step for {limit_s:.0f} s"
    if stopped := next((each for each in reports if each.stopped), None):
        return (
            stopped.rank,
            f"rank {stopped.rank} on {stopped.host} is stopped (SIGSTOP) after step {stopped.step}: {late}",
        )
    if missing:
        some = ", ".join(map(str, missing[:8])) + (" and more" if len(missing) > 8 else "")
        return missing[0], f"rank {some} does not answer, as if its node were gone, after step {behind.step}: {late}"
    busy = next((each for each in reports if not each.waits), None)
    culprit = behind if behind.step < max(each.step for each in reports) else busy
    if culprit is None:
        return behind.rank, f"every rank waits for the others in a collective after step {behind.step}: {late}"
    at = culprit.main[0] if culprit.main else "its stack is not known"
    return culprit.rank, f"rank {culprit.rank} on {culprit.host} hangs after step {culprit.step}: {late}; it is at {at}"
