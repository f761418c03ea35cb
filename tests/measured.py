"""Run pytest, and print the share of our lines that it ran: ``python -m tests.measured ARGUMENTS OF PYTEST``.

Slipcover rewrites the code that it measures, which costs a quarter more time; coverage.py, which traces it, tripled
that of the planner's tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("configs", "planner", "recipes", "launch")
LEFT_OUT = "recipes/reference/*"  # the stand-ins run in other processes
LEAST = 15  # files that are listed: those with the most lines that nothing ran


def shares(report: Path) -> dict[str, tuple[int, int]]:
    """Lines that ran, and all lines, of each file. A file has two names where it is reached by a link of slipway/."""
    ran, lines = defaultdict[str, set[int]](set), defaultdict[str, set[int]](set)
    for name, file in json.loads(report.read_text())["files"].items():
        real = str((ROOT / name).resolve().relative_to(ROOT))
        ran[real] |= set(file["executed_lines"])
        lines[real] |= {*file["executed_lines"], *file["missing_lines"]}
    return {name: (len(ran[name]), len(lines[name])) for name in lines}


def table(found: dict[str, tuple[int, int]]) -> str:
    """The files of which the most lines did not run, and the share of all."""
    most = sorted(found, key=lambda name: found[name][0] - found[name][1])[:LEAST]
    rows = [f"{lines - ran:6} of {lines:4} lines did not run: {name}" for name in most for ran, lines in [found[name]]]
    ran, lines = (sum(counts) for counts in zip(*found.values(), strict=True))
    return "\n".join([*rows, f"coverage: {ran / lines:.1%} of {lines:,} lines"])


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="slipway-coverage-") as folder:
        report = Path(folder) / "coverage.json"
        measured = ["--json", "--out", str(report), "--source", ",".join(SOURCES), "--omit", LEFT_OUT]
        words = [sys.executable, "-m", "slipcover", *measured, "-m", "pytest", *sys.argv[1:]]
        code = subprocess.run(words, cwd=ROOT, check=False).returncode
        if report.is_file():
            print(table(shares(report)), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
