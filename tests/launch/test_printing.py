"""Text from users, files and errors is printed as it is: in the terminal, in tables, on pages and in pictures."""

from __future__ import annotations

import ast
import contextlib
import html
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from slipway import configs, planner
from slipway.configs import Spec
from slipway.launch.cli.app import main
from slipway.launch.cli.commands.check import Checked
from slipway.launch.cli.printing import Style, Table, Terminal, kept_together
from slipway.launch.runs import pages
from slipway.launch.runs.pictures import as_label
from slipway.recipes.runtime.run_files import FAILURE
from tests.launch.written_runs import curve, tiny, write_run

ROOT = Path(__file__).parents[2]
HOSTILE = "[bold]a[/bold] [/path] [mlp] {picture} {0} <b>&amp;</b> $x$ 100%"


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def spec() -> Spec:
    return tiny()


@pytest.fixture(params=["plain", "terminal"])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal(_Tty() if request.param == "terminal" else io.StringIO())


def _printed(terminal: Terminal) -> str:
    assert isinstance(terminal.stream, io.StringIO)
    return terminal.stream.getvalue()


@pytest.mark.parametrize("style", list(Style))
def test_every_printer_prints_brackets(terminal: Terminal, style: Style) -> None:
    terminal.line(HOSTILE, style)
    terminal.field(HOSTILE, HOSTILE, style)
    table = Table([HOSTILE, "b"])
    table.add(HOSTILE, HOSTILE)
    terminal.table(table)
    assert _printed(terminal).count(HOSTILE) == 6


def test_control_characters_do_not_reach_the_terminal(terminal: Terminal) -> None:
    terminal.line("a\x1b[2Jb\rc\x07")
    table = Table(["\x1b[31mred"])
    table.add("a\tb\nc")
    terminal.table(table)
    assert "\x1b[2J" not in _printed(terminal) and "\x1b[31m" not in _printed(terminal)
    assert "a[2Jbc" in _printed(terminal)


def test_a_fix_with_brackets_is_printed_whole(terminal: Terminal) -> None:
    """Rich took ``[mlp]`` for a style and printed ``layout.recompute_modules=.``"""
    resolved = configs.load("llama3_8b", ["layout.tp=3"])
    verdict = planner.check(planner.complete(resolved))
    broken = replace(verdict.violations[0], message=HOSTILE, fix="Use x=[mlp].")
    Checked(replace(verdict, violations=[broken], advice=[broken]), "given", None, resolved).show(terminal)
    assert _printed(terminal).count(f"{HOSTILE} Use x=[mlp].") == 2


def _slipway(*words: str) -> tuple[int, str, str]:
    """A command in this process: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    given, sys.argv = sys.argv, ["slipway", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = given
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    "words",
    [
        ["check", "[/path]"],
        ["check", "llama3_8b", "[/path]=1"],
        ["show", "llama3_8b", "gpu=[/path]"],
        ["plan", "[/path]"],
        ["advise", "[/path]"],
        ["validate", "[/path]"],
        ["report", "[/path]"],
        ["compare", "[/path]", "b"],
        ["doctor", "--only", "[/path]"],
        ["data", "prepare", "[/path]", "--tokenizer", "t", "--out", "o"],
        ["[/path]"],
    ],
)
def test_every_message_prints_brackets(words: list[str]) -> None:
    code, _, message = _slipway(*words)
    assert code == 2
    assert "[/path]" in message


def test_a_report_of_a_run_prints_its_error_and_its_name(tmp_path: Path, spec: Spec) -> None:
    """``report`` died of a MarkupError where the error's text held ``[/path]``."""
    folder = write_run(tmp_path / "<b>$x$ [a]", curve(0, 20), 0.5, spec)
    failure = {"step": 20, "rank": 3, "error": "OSError", "message": HOSTILE}
    (folder / FAILURE).write_text(json.dumps(failure))
    code, printed, _ = _slipway("report", str(folder))
    assert code == 0
    assert HOSTILE in " ".join(printed.split())
    page = (folder / "report.html").read_text()
    assert html.escape(HOSTILE) in page and HOSTILE not in page
    assert "Run &lt;b&gt;$x$ [a]</h1>" in page
    assert page.count("const CHARTS=") == 1, "the charts are where the page puts them"


def test_several_runs_with_brackets_in_their_names(tmp_path: Path, spec: Spec) -> None:
    for name in ("a [x]#1", "_b$ <i>"):
        write_run(tmp_path / name, curve(0, 20), 0.5, spec)
    code, printed, _ = _slipway("report", str(tmp_path))
    assert code == 0
    assert "a [x]#1" in printed and "_b$ <i>" in printed
    page = (tmp_path / "runs.html").read_text()
    assert 'href="a%20%5Bx%5D%231/report.html"' in page
    code, printed, _ = _slipway("compare", str(tmp_path / "a [x]#1"), str(tmp_path / "_b$ <i>"), "--out", str(tmp_path))
    assert code == 0 and "_b$ <i> is 1.00x as fast as a" in printed


def test_a_pages_table_is_escaped() -> None:
    table = pages.table([[HOSTILE, HOSTILE]], [HOSTILE, "b"], ['a"b/<c>.html'])
    assert table.count(html.escape(HOSTILE)) == 3
    assert "<b>" not in table and '"a"b' not in table


def test_a_name_in_a_picture_is_no_formula() -> None:
    assert as_label("loss_$x$") == r"loss_\$x\$"
    assert not as_label("_hidden").startswith("_"), "Matplotlib leaves such a label out of the legend"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_output_keeps_to_the_width_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for words in (["list"], ["check", "llama3_8b", "layout.tp=2"], ["check", "--help"], ["--help"]):
        _, printed, _ = _slipway(*words)
        longest = max(printed.splitlines(), key=len)
        assert len(longest) <= max(width, 80), longest  # a table of numbers needs 80


def test_a_long_word_is_divided_where_it_is_readable_and_a_unit_stays_with_its_number() -> None:
    table = Table(["key", "value"])
    table.add("layout.num_layers_in_first_pipeline_stage", "a few words that can be wrapped")
    key, *rest = (line.split("  ")[0].strip() for line in table.lines(70)[2:])
    assert (key, rest[0]) == ("layout.num_layers_in_first_pipeline_stage", ""), "words are wrapped before names"
    narrow = [line.split("  ")[0].strip() for line in table.lines(40)[2:]]
    assert "".join(narrow) == key and all(part.endswith(("_", "stage")) for part in narrow if part)
    terminal = Terminal(io.StringIO())
    terminal.wraps, terminal.width = True, 30
    terminal.field("spent", "attention 1 s, " + kept_together("gemm 22.0 s"))
    assert _printed(terminal).splitlines()[1].strip() == "gemm 22.0 s"


def test_check_names_the_schedule_of_a_pipeline() -> None:
    for overrides, name in ((["layout.vpp=2"], "interleaved"), ([], "1f1b")):
        _, printed, _ = _slipway("check", "llama3_70b", "layout.tp=8", "layout.pp=4", *overrides)
        assert f"schedule {name}\n" in printed
    assert "\nschedule " not in _slipway("check", "llama3_8b", "layout.tp=8")[1]


def test_nothing_but_the_printing_module_and_the_progress_bar_prints_with_rich() -> None:
    for path in (ROOT / "launch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(module.split(".")[0] == "rich" for module in modules):
                assert path == ROOT / "launch/cli/progress.py"
