"""Every test, by three lanes of pytest side by side: ``make test``, or ``python -m tests`` without lint and types.

The tests of SLURM mostly wait, for its scheduler and its time limits, so the tests that compute run beside them, those
that need NeMo apart from the others. At the end come the counts of all lanes, what failed, what was skipped and why,
and the slowest tests. The exit code is 0 if every test passed or was skipped, else 1.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import NoReturn
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
QUICK = "not slow and not nemo and not slurm and not image"  # the same words as in the Makefile
SLOWEST = 20  # tests that are listed
# Of the lane that computes. The other comes first, since there are time limits in it. Where Linux groups processes by
# session ("autogroup"), it weighs the groups by a niceness of theirs, whatever the number of processes.
NICENESS, SESSION_NICENESS = 10, 3
NO_TESTS_COLLECTED = 5  # pytest's exit code


class Outcome(Enum):
    passed = "passed"
    failed = "failed"
    skipped = "skipped"


@dataclass(frozen=True)
class Part:
    """One run of pytest: its name, its words on pytest's command line, and the module that runs it."""

    name: str
    words: tuple[str, ...]
    module: str = "pytest"


@dataclass(frozen=True)
class Lane:
    """Parts that run in turn, behind other lanes if ``yields``."""

    parts: tuple[Part, ...]
    yields: bool = False


@dataclass(frozen=True)
class Test:
    """One test's outcome; ``seconds`` are of the wall clock and include its fixtures, ``why`` is a skip's reason."""

    name: str
    outcome: Outcome
    seconds: float
    why: str = ""


LANES = (
    Lane((Part("slurm", ("-m", "slurm")),)),
    Lane(
        (
            Part("image", ("-m", "image and not slurm")),
            Part("quick", ("-m", QUICK), module="tests.measured"),
        ),
        yields=True,
    ),
    Lane((Part("nemo", ("-m", "(nemo or slow) and not slurm and not image")),), yields=True),
)


def read(report: Path) -> list[Test]:
    """The tests of a JUnit file that pytest wrote."""
    tests = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        outcome, why = Outcome.passed, ""
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = Outcome.failed
        elif (skip := case.find("skipped")) is not None:
            outcome, why = Outcome.skipped, skip.get("message", "")
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        tests.append(Test(name, outcome, float(case.get("time", 0)), why))
    return tests


def summary(tests: Sequence[Test], crashed: Sequence[str], seconds: float) -> str:
    """What is printed at the end. ``crashed`` names the parts that ended without a report."""
    of = {outcome: [t for t in tests if t.outcome is outcome] for outcome in Outcome}
    lines = [f"the {min(SLOWEST, len(tests))} slowest tests, in seconds with their fixtures:"]
    lines += [f"{t.seconds:8.1f}  {t.name}" for t in sorted(tests, key=lambda t: -t.seconds)[:SLOWEST]]
    lines += [f"skipped: {t.name}: {t.why}" for t in of[Outcome.skipped]] or ["nothing was skipped"]
    lines += [f"FAILED: {t.name}" for t in of[Outcome.failed]]
    lines += [f"FAILED: the part {name} ended without a report" for name in crashed]
    counts = ", ".join(f"{len(found)} {outcome.value}" for outcome, found in of.items())
    return "\n".join([*lines, f"{counts} in {seconds:.0f} s"])


class Runner:
    """Runs lanes at the same time, and prints each line of a part after the part's name."""

    def __init__(self, reports: Path, cwd: Path = ROOT) -> None:
        self.reports, self.cwd = reports, cwd
        self.tests: list[Test] = []
        self.crashed: list[str] = []
        self._running: list[subprocess.Popen[str]] = []
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, lanes: Sequence[Lane]) -> int:
        """Run everything and print the summary; the exit code."""
        start = time.monotonic()
        threads = [threading.Thread(target=self._lane, args=(lane,)) for lane in lanes]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            self._stop()
            for thread in threads:
                thread.join()
        print(summary(self.tests, self.crashed, time.monotonic() - start), flush=True)
        failed = self.crashed or self._stopped or any(t.outcome is Outcome.failed for t in self.tests)
        return int(bool(failed) or not self.tests)

    def _lane(self, lane: Lane) -> None:
        for part in lane.parts:
            if not self._stopped:
                self._part(part, lane.yields)

    def _part(self, part: Part, yields: bool) -> None:
        report = self.reports / f"{part.name}.xml"
        process = subprocess.Popen(
            [sys.executable, "-m", part.module, f"--junitxml={report}", *part.words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.cwd,
            start_new_session=True,
        )
        with self._lock:
            self._running.append(process)
        if yields:
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
            with contextlib.suppress(OSError):
                Path(f"/proc/{process.pid}/autogroup").write_text(str(SESSION_NICENESS))
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{part.name:7} | {line}", end="", flush=True)
        code = process.wait()
        with self._lock:
            self._running.remove(process)
            if report.is_file():
                self.tests += read(report)
            if not report.is_file() or code not in (0, 1, NO_TESTS_COLLECTED):
                self.crashed.append(part.name)

    def _stop(self) -> None:
        """Interrupt pytest as Ctrl-C does, so that fixtures end what they started."""
        self._stopped = True
        with self._lock:
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGINT)


def main() -> NoReturn:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    with tempfile.TemporaryDirectory(prefix="slipway-tests-") as folder:
        sys.exit(Runner(Path(folder)).run(LANES))


if __name__ == "__main__":
    main()
