"""Problems for people, for GitHub's annotations, for code scanning, and for a comment."""

from __future__ import annotations

import json
from collections.abc import Sequence

from slipway.launch.cli.printing import plural
from slipway.launch.lint.judge import Level, Problem

SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
_ESCAPES = {"%": "%25", "\r": "%0D", "\n": "%0A"}  # of GitHub's workflow commands
_IN_PROPERTIES = {":": "%3A", ",": "%2C"}


def summary(files: int, runs: int, problems: Sequence[Problem]) -> str:
    """One line on what was judged."""
    errors = [problem for problem in problems if problem.level is Level.error]
    new = sum(problem.new for problem in errors)
    known = f", {len(errors) - new} known" if len(errors) > new else ""
    warnings, judged = len(problems) - len(errors), f"{plural(files, 'file')}, {plural(runs, 'run')}"
    return f"{judged}: {plural(new, 'new problem')}{known}, {plural(warnings, 'warning')}"


def text(problems: Sequence[Problem]) -> list[str]:
    """One line a problem, as compilers print them."""
    return [
        f"{each.path}:{each.line}: {each.level.value}{'' if each.new else ' (known)'}: {each.rule} on {each.gpu}: "
        f"{each.message}"
        for each in problems
    ]


def github(problems: Sequence[Problem]) -> list[str]:
    """Workflow commands, which GitHub shows at the lines of a pull request."""
    out = []
    for each in problems:
        level = each.level.value if each.new else "notice"
        place = (
            f"file={_escaped(each.path, True)},line={each.line},title={_escaped(f'{each.rule} on {each.gpu}', True)}"
        )
        out.append(f"::{level} {place}::{_escaped(each.message, False)}")
    return out


def _escaped(text: str, in_property: bool) -> str:
    for mark, code in (_ESCAPES | (_IN_PROPERTIES if in_property else {})).items():
        text = text.replace(mark, code)
    return text


def markdown(line: str, problems: Sequence[Problem]) -> list[str]:
    """A table, for a comment on a pull request."""
    out = [f"**slipway lint:** {line}"]
    if problems:
        out += ["", "| file | GPU | | what | |", "|---|---|---|---|---|"]
    for each in problems:
        cell = each.message.replace("|", "\\|").replace("\n", " ")
        state = "new" if each.new else "known"
        out.append(
            f"| `{each.path}` line {each.line} | {each.gpu} | {each.level.value} | {each.rule}: {cell} | {state} |"
        )
    return out


def sarif(problems: Sequence[Problem], version: str) -> str:
    """SARIF 2.1.0, which GitHub's code scanning and editors read."""
    rules = sorted({problem.rule for problem in problems})
    results = [
        {
            "ruleId": each.rule,
            "ruleIndex": rules.index(each.rule),
            "level": each.level.value,
            "message": {"text": f"{each.message} (on {each.gpu})"},
            "baselineState": "new" if each.new else "unchanged",
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": each.path},
                        "region": {"startLine": each.line},
                    }
                }
            ],
        }
        for each in problems
    ]
    driver = {"name": "slipway", "version": version, "rules": [{"id": rule} for rule in rules]}
    made = {"$schema": SARIF, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
    return json.dumps(made, indent=1)
