"""``slipway lint``: the problems of a repository's recipes and scripts, and what is new since a revision."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.configs.test_schema import OWN_MODEL, OWN_RECIPE
from tests.launch.test_cli import ROOT, SLIPWAY, slipway
from tests.launch.test_foreign import LLAMA3_8B

PIPELINE = "--bf16 --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 4"


def _git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a script, one that trains nothing, one that is broken, and a recipe."""
    (tmp_path / "good.sh").write_text(LLAMA3_8B.replace("--bf16", PIPELINE))
    (tmp_path / "setup.sh").write_text("#!/bin/bash\npip install x\n")
    (tmp_path / "notes.yaml").write_text("a: 1\n")
    (tmp_path / "broken.sh").write_text(LLAMA3_8B.replace("TP=${TP:-2}", "TP=3").replace("nodes=2", "nodes=3"))
    (tmp_path / "asks.sh").write_text(LLAMA3_8B.replace("--num-layers 32", "--num-layers $LAYERS"))
    for group, text in (("model", OWN_MODEL), ("recipe", OWN_RECIPE)):
        (tmp_path / "ours" / group).mkdir(parents=True)
        (tmp_path / "ours" / group / "ours_1b.yaml").write_text(text)
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", "-A")
    _git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def _linted(*words: str, code: int) -> dict[str, list[tuple[str, bool]]]:
    """For each file, the rules that it breaks, and whether they are new."""
    done = slipway("lint", *words, "--json", code=code)
    found: dict[str, list[tuple[str, bool]]] = {}
    for problem in json.loads(done.stdout)["problems"]:
        found.setdefault(Path(problem["path"]).name, []).append((problem["rule"], problem["new"]))
    return found


def test_only_what_describes_a_run_is_judged(checkout: Path) -> None:
    out = json.loads(slipway("lint", str(checkout), "--json", code=1).stdout)
    assert (out["files"], out["failed"]) == (4, True)
    broken = [problem for problem in out["problems"] if problem["level"] == "error"]
    assert {Path(problem["path"]).name for problem in broken} == {"broken.sh"}
    line = next(n for n, row in enumerate(LLAMA3_8B.splitlines(), 1) if "--tensor-model-parallel-size" in row)
    assert [(problem["line"], problem["gpu"]) for problem in broken if problem["rule"] == "tp-heads"] == [
        (line, "h100")
    ]
    asks = [problem for problem in out["problems"] if problem["path"].endswith("asks.sh")]
    assert [(each["rule"], each["level"]) for each in asks] == [("not-judged", "warning")]
    assert "LAYERS" in asks[0]["message"]
    assert slipway("lint", str(checkout / "asks.sh"), "--set", "LAYERS=32").returncode == 0
    assert slipway("lint", str(checkout / "asks.sh"), code=1).returncode == 1


def test_what_is_new_since_a_revision_fails(checkout: Path) -> None:
    found = _linted(str(checkout), "--against", "HEAD", code=0)
    assert {new for rules in found.values() for _, new in rules} == {False}
    script = (checkout / "good.sh").read_text()
    (checkout / "good.sh").write_text(
        script.replace("--num-layers 32", "--num-layers 16").replace(
            "--micro-batch-size 1",
            "--micro-batch-size 1 --recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
        )
    )
    recipe = checkout / "ours" / "recipe" / "ours_1b.yaml"
    recipe.write_text(recipe.read_text().replace("gbs: 256", "gbs: 256\n  tp: 3"))
    found = _linted(str(checkout), "--against", "HEAD", code=1)
    assert found["good.sh"] == [("silent-vpp", True)], "fewer layers of the same chunks: VPP 4 became 2"
    assert ("tp-heads", True) in found["ours_1b.yaml"] and ("tp-heads", False) in found["broken.sh"]


def test_what_became_slower_fails(checkout: Path) -> None:
    script = (checkout / "good.sh").read_text()
    slow = "--bf16 --recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
    (checkout / "good.sh").write_text(script.replace("--bf16", slow))
    assert _linted(str(checkout / "good.sh"), "--against", "HEAD", code=1) == {"good.sh": [("slower", True)]}


def test_each_format_says_the_same(checkout: Path) -> None:
    path = str(checkout / "broken.sh")
    at = next(n for n, row in enumerate(LLAMA3_8B.splitlines(), 1) if "--tensor-model-parallel-size" in row)
    text = slipway("lint", path, code=1).stdout
    assert f"{path}:{at}: error: tp-heads on h100: --tensor-model-parallel-size 3 (line {at})" in text
    annotations = slipway("lint", path, "--format", "github", code=1).stdout
    assert (
        f"::error file={path},line={at},title=tp-heads on h100::--tensor-model-parallel-size 3 (line {at})"
        in annotations
    )
    assert (
        f"| `{path}` line {at} | h100 | error | tp-heads:"
        in slipway("lint", path, "--format", "markdown", code=1).stdout
    )
    run = json.loads(slipway("lint", path, "--format", "sarif", code=1).stdout)["runs"][0]
    result = next(each for each in run["results"] if each["ruleId"] == "tp-heads")
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == "tp-heads"
    assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == at


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nowhere",), "there is no file or folder nowhere"),
        ((".", "--gpu", "h1000"), "unknown gpu 'h1000'"),
        ((".", "--against", "no-such-revision"), "--against: "),
    ],
)
def test_bad_words_are_refused(
    words: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = slipway("lint", *words, code=2)
    assert says in done.stderr and len(done.stderr.splitlines()) == 1


def test_our_own_recipes_and_scripts_are_clean() -> None:
    """What an action of three lines runs in our own CI."""
    count = len(list((ROOT / "configs" / "recipe").glob("*.yaml"))) + 1
    words = [str(ROOT / "configs" / "recipe"), str(ROOT / "docs" / "train.sh"), "--set", "NODES=3"]
    done = subprocess.run([SLIPWAY, "lint", *words], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout
    assert f"{count} files, {count} runs: 0 new problems, 0 warnings" in done.stdout


def test_the_action_gives_the_command_what_it_takes() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    run = action["runs"]["steps"][-1]["run"]
    shown = slipway("lint", "--help").stdout
    assert all(word in shown for word in run.split() if word.startswith("--"))
    assert set(action["inputs"]) == {"paths", "against", "gpu", "format", "python-version"}
