"""The documentation: its commands exist and print what is shown, and its site builds without a broken link."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
BIN = Path(sys.executable).parent
WIDE = os.environ | {"COLUMNS": "200", "NO_MKDOCS_2_WARNING": "1"}  # no line is wrapped


def _blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page, with continued lines joined."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), re.S | re.M)
    return [re.sub(r" *\\\n *", " ", block) for block in found]


def _shown() -> list[tuple[Path, str, str]]:
    """(page, command, what it is shown to print) for each `$ command` of a console block."""
    return [
        (page, command.strip(), output)
        for page in PAGES
        for block in _blocks(page, "console")
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M)
    ]


SHOWN = _shown()
TYPED = sorted(
    {
        shlex.join(words)
        for page in PAGES
        for block in _blocks(page, "sh") + [command for _, command, _ in SHOWN]
        for line in block.splitlines()
        if (words := shlex.split(line.removeprefix("$ "), comments=True)) and words[0] == "slipway" and len(words) > 1
    }
)


@pytest.mark.parametrize(("page", "command", "output"), SHOWN, ids=[f"{p.stem}: {c}" for p, c, _ in SHOWN])
def test_each_shown_command_prints_what_is_shown(page: Path, command: str, output: str) -> None:
    """A line that ends with ... is shown up to there; a command whose comment says `exits with 2` must do so."""
    words = shlex.split(command, comments=True)
    done = subprocess.run(
        [BIN / words[0], *words[1:]], capture_output=True, text=True, cwd=ROOT, env=WIDE, timeout=300, check=False
    )
    assert done.returncode == (2 if "exits with 2" in command else 0), done.stderr
    for line in output.splitlines():
        assert line.removesuffix("...").rstrip() in done.stdout, line


@pytest.mark.parametrize("command", TYPED)
def test_each_typed_command_exists_with_its_options(command: str) -> None:
    """Commands that need a cluster or a run are parsed by the command line itself, and not run."""
    import click

    from slipway.launch.cli.app import app

    words = shlex.split(command)[1:]
    context, current = click.Context(app, info_name="slipway"), app
    while isinstance(current, click.Group):
        name = words.pop(0)
        found = current.get_command(context, name)
        assert found is not None, f"{command}: no command {name}"
        context, current = click.Context(found, info_name=name, parent=context), found  # type: ignore[assignment]
    current.make_parser(context).parse_args(list(words))


def test_the_site_builds_without_a_broken_link_and_loads_nothing_from_the_network(tmp_path: Path) -> None:
    """`mkdocs build --strict`, as `make docs`: every page in the navigation, every link and anchor resolved."""
    done = subprocess.run(
        [BIN / "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=WIDE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {"commands.html", "keys.html", "rules.html", "recipes.html"} <= {page.name for page in pages}
    for page in pages:
        outside = re.findall(
            r"<(?:script|img|iframe|link rel=\"stylesheet\")[^>]*(?:src|href)=\"(https?:[^\"]*)", page.read_text()
        )
        assert not outside, f"{page.name} loads {outside}"


def test_every_command_key_and_rule_is_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    from slipway.configs.load import schema_keys
    from slipway.launch.cli.app import command_names
    from slipway.planner import RULES

    reference = importlib.import_module("reference")
    pages = reference.pages()
    for name in command_names():
        assert f"### slipway {name}\n" in pages["commands"]
    for rule in RULES:
        assert f"### {rule.id}\n" in pages["rules"]
    for key in schema_keys():
        assert f"| {reference.code(key)} |" in pages["keys"]


def test_the_files_that_are_named_exist() -> None:
    """Paths into the repository that the pages and CONTRIBUTING.md name in code, placeholders aside."""
    tracked = ("configs", "planner", "recipes", "launch", "tests", "benchmarks", "docker", "requirements")
    for page in PAGES:
        for path in re.findall(rf"`((?:{'|'.join(tracked)})/[\w./-]*)`", page.read_text()):
            if not re.search(r"[A-Z]{3}", path):
                assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_the_figures_that_the_readme_quotes_are_those_of_the_accuracy_report() -> None:
    report, readme = (ROOT / "docs" / "accuracy.md").read_text(), (ROOT / "README.md").read_text()
    quoted = re.findall(r"^\| ((?:H100|Blackwell), \w+) \| (.*) \|$", readme, re.M)
    assert len(quoted) == 4
    for kind, figures in quoted:
        assert f"| NVIDIA's rows, {kind} | {figures.replace(' %', '%')} |" in report, kind
    for gpu, error in (("h100", "2.2"), ("a100", "3.3")):
        assert re.search(rf"^\| {gpu} \| \d+ \| [^|]* \| {error}% \|", report, re.M) and f"{error} %" in readme
