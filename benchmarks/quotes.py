"""Update the numbers that Markdown pages quote: printed answers, predicted cases, the accuracy summary."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict

# A fenced block's command and the lines under it, up to the next command or the end of the block.
_ANSWER = re.compile(r"^\$ (slipway (?:check|plan|advise) [^\n]*)\n((?:(?!\$ |```)[^\n]*\n)+)", re.MULTILINE)
ABBREVIATED = "; ..."  # ends a quoted line that leaves out the last parts of a printed one
WIDTH = 120  # columns of a quoted answer
_CASE = re.compile(r"^\| (slipway [^|]*) \|.*$", re.MULTILINE)
# The accuracy summary: a class of rows as the report names it, and as a shorter table may.
_ALL = "H100 and Blackwell"
_SUMMARY_ROW = re.compile(
    r"^\| (?:NVIDIA's rows, )?((?:H100|Blackwell), \w+|H100 and Blackwell|all of them) \| \d+ \|.*$", re.M
)
_GOLDEN_SENTENCE = re.compile(
    r"against \d+ peaks of (.*?\s)median error is [\d.]+ % \(H100\) to [\d.]+ % \(A100\)", re.S
)
_GOLDEN_ROW = re.compile(r"^\| (\w+) \| (\d+) \| [\d.]+ GiB [^|]*\| ([\d.]+)% \|", re.MULTILINE)


def refresh_answers(text: str) -> str:
    """A page with what its quoted `slipway check`, `plan` and `advise` print now.

    Of each answer a page quotes some lines. A line is found again by its first words.
    """

    def refreshed(match: re.Match[str]) -> str:
        command, quoted = match.groups()
        printed = _printed(command.split("  #")[0]).splitlines()
        return f"$ {command}\n" + "".join(f"{_requote(line, printed)}\n" for line in quoted.splitlines())

    return _ANSWER.sub(refreshed, text)


def _printed(command: str) -> str:
    """The output of a `slipway` command, its refusals included."""
    words = [sys.executable, "-m", "slipway.launch.cli", *shlex.split(command)[1:]]
    environment = os.environ | {"COLUMNS": str(WIDTH)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    return done.stdout + done.stderr


def _requote(quoted: str, printed: list[str]) -> str:
    """The printed line that begins most like the quoted one, abbreviated in the same way; else the quoted line."""
    label = quoted.split(maxsplit=1)[:1]
    alike = [line for line in printed if line.split(maxsplit=1)[:1] == label]
    if not label or not alike:
        return quoted
    found = max(alike, key=lambda line: len(os.path.commonprefix([line, quoted])))
    if not quoted.endswith(ABBREVIATED):
        return found.rstrip()
    parts = quoted.removesuffix(ABBREVIATED).count("; ") + 1
    return "; ".join(found.split("; ")[:parts]) + ABBREVIATED


def refresh_cases(text: str, gpu: str) -> str:
    """A page with the planner's current prediction of each GPU case that it lists."""
    if not _CASE.search(text):
        return text
    from benchmarks.gpu.cases import gpu_cases, layers_that_fit, predict
    from benchmarks.gpu.tables import describe, predicted_table

    rows = {}
    for case in gpu_cases(gpu, layers_that_fit(gpu)):
        if prediction := predict(case):
            row = {"who": case.who, "case": asdict(case), "predicted": prediction}
            rows[describe(row)] = predicted_table([row]).splitlines()[-1]
    return _CASE.sub(lambda match: rows.get(match[1], match[0]), text)


def _summary(report: str) -> dict[str, list[str]]:
    """Cells of the report's summary by class of rows: rows, MAPE, median, within 10 %, bias."""
    rows = {match[1]: match[0].strip("| ").split(" | ")[1:] for match in _SUMMARY_ROW.finditer(report)}
    return rows | {"all of them": rows[_ALL]} if _ALL in rows else rows


def refresh_accuracy(text: str, report: str) -> str:
    """A page with the report's numbers in its summary table and in its sentence on memory."""
    cells: Mapping[str, list[str]] = _summary(report)

    def row(match: re.Match[str]) -> str:
        old = match[0].strip("| ").split(" | ")
        if match[1] not in cells:
            return match[0]
        new = [cell.replace("%", " %") for cell in cells[match[1]][: len(old) - 1]]
        return "| " + " | ".join([old[0], *new]) + " |"

    def sentence(match: re.Match[str]) -> str:
        golden = {gpu: (int(values), error) for gpu, values, error in _GOLDEN_ROW.findall(report)}
        if not {"h100", "a100"} <= golden.keys():
            return match[0]
        peaks = sum(values for values, _ in golden.values())
        errors = f"median error is {golden['h100'][1]} % (H100) to {golden['a100'][1]} % (A100)"
        return f"against {peaks} peaks of {match[1]}{errors}"

    return _GOLDEN_SENTENCE.sub(sentence, _SUMMARY_ROW.sub(row, text))
