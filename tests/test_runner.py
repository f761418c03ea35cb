"""``python -m tests``: every test is in one part, and what failed or crashed in one lane is not lost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.__main__ import LANES, QUICK, ROOT, Lane, Part, Runner

PROJECT = """
import os, time
import pytest

def test_passes():
    time.sleep(0.2)

@pytest.mark.skipif(True, reason="there is no moon")
def test_is_skipped(): pass

def test_fails():
    assert 1 == 2

def test_fixture(broken): pass

@pytest.fixture
def broken():
    raise OSError("no such fixture")

def test_ends_the_process():
    os._exit(3)
"""


@pytest.fixture(autouse=True)
def without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest starts in a quarter of the time without the plugins that are installed here."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def _run(folder: Path, *lanes: Lane) -> Runner:
    (folder / "test_project.py").write_text(PROJECT)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return Runner(folder, folder)


def test_two_lanes_are_merged_and_a_failure_in_one_is_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = Part("good", ("-k", "passes or skipped")), Part("bad", ("-k", "fails or fixture"))
    assert _run(tmp_path).run([Lane((good,))]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 passed, 0 failed, 1 skipped in ")
    assert _run(tmp_path).run([Lane((good,)), Lane((bad,), yields=True)]) == 1
    printed = capsys.readouterr().out
    assert "good    | " in printed and "bad     | " in printed
    *_, slowest, skipped, failed, broken, counts = printed.splitlines()
    assert re.fullmatch(r" +0\.0  test_project.py::test_\w+", slowest)
    assert skipped == "skipped: test_project.py::test_is_skipped: there is no moon"
    assert failed == "FAILED: test_project.py::test_fails"
    assert broken == "FAILED: test_project.py::test_fixture"
    assert counts.startswith("1 passed, 2 failed, 1 skipped in ")
    first = printed.split("slowest tests, in seconds with their fixtures:\n")[1].splitlines()[0]
    assert first.endswith("test_passes"), "the slowest comes first"


def test_a_part_that_crashes_fails_and_does_not_stop_its_lane(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = (Part("crash", ("-k", "ends_the_process")), Part("after", ("-k", "passes")))
    assert _run(tmp_path).run([Lane(parts)]) == 1
    printed = capsys.readouterr().out
    assert "FAILED: the part crash ended without a report" in printed
    assert printed.splitlines()[-1].startswith("1 passed, 0 failed, 0 skipped in ")


def test_every_test_is_in_one_part() -> None:
    """Over all sets of the markers by which the parts choose."""
    from itertools import product

    from _pytest.mark.expression import Expression

    selects = [Expression.compile(p.words[p.words.index("-m") + 1]) for lane in LANES for p in lane.parts]
    for on in product((False, True), repeat=4):
        markers = dict(zip(("slow", "nemo", "slurm", "image"), on, strict=True))

        def has(name: str, /, **_: Any) -> bool:
            return markers[name]

        assert sum(select.evaluate(has) for select in selects) == 1, markers
    assert f"QUICK := {QUICK}\n" in (ROOT / "Makefile").read_text()
