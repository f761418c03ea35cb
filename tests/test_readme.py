"""The README's commands do what it says. .ci/run itself runs make test, which sets up, and make quickstart."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forked

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    line[2:].split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if line.startswith("$ ")
]
INLINE = [c for c in re.findall(r"`(slipway (?:check|plan|show|advise) [^`]*)`", TEXT) if "=" in c]


NEEDS_NEMO = ("slipway launch ", "slipway rehearse ")


def _run(command: str) -> str:
    words = shlex.split(command)
    assert words[0] == "slipway"
    options: dict[str, Any] = {"cwd": ROOT, "environment": os.environ | {"COLUMNS": "200"}}  # no line is wrapped
    if command.startswith(NEEDS_NEMO):
        done = forked.slipway(*words[1:], timeout_s=600, **options)
    else:
        words[0] = str(Path(sys.executable).parent / words[0])
        done = subprocess.run(
            words, capture_output=True, text=True, cwd=ROOT, env=options["environment"], timeout=600, check=False
        )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.parametrize("command", [c for c in COMMANDS + INLINE if not c.startswith(NEEDS_NEMO)])
def test_each_command_runs(command: str) -> None:
    assert _run(command)


@pytest.mark.nemo
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(NEEDS_NEMO)])
def test_each_command_that_imports_nemo_runs(command: str) -> None:
    printed = _run(command)
    assert "the same training" in printed if "rehearse" in command else printed


def test_check_prints_what_the_readme_shows() -> None:
    command = next(c for c in COMMANDS if c.startswith("slipway check"))
    shown = TEXT.split("$ " + command)[1].split("```")[0]
    printed = _run(command)
    for line in shown.strip().splitlines():
        assert line.replace(" ...", "").strip() in printed, line


def test_the_readme_shows_the_cluster_file_of_the_docs() -> None:
    site = (ROOT / "docs/site.yaml").read_text().split("\n", 1)[1]
    assert f"```yaml\n{site}```" in TEXT


def test_every_family_is_in_the_table_and_every_make_target_exists() -> None:
    from slipway import configs

    table = TEXT.split("## The recipes")[1].split("## Make it yours")[0]
    named = set(re.findall(r"\b[a-z]+[0-9]*_[a-z0-9_]+\b", table))
    assert named <= set(configs.recipe_names())
    families = {name: configs.headline(name)[0].family for name in configs.recipe_names()}
    assert {families[name] for name in named} == set(families.values()), "each family has a recipe in the table"
    assert f"shows all {len(families)}." in TEXT
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", TEXT):
        assert f"\n{target}:" in makefile, target
