"""The commands that answer in days and dollars: their JSON, and a sentence for bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from slipway.launch.cli.sized import counts_of
from tests.launch.test_cli import slipway


def test_check_says_what_the_whole_run_costs() -> None:
    words = ("check", "llama3_8b", "gpus=64", "tokens=1T", "price=2.5", "layout.tp=2")
    out = json.loads(slipway(*words, "--json").stdout)
    assert out["run"]["tokens"] >= 1e12 and out["cost"]["dollars"] == pytest.approx(2.5 * out["cost"]["gpu_hours"])
    assert out["goodput"]["days"] > out["cost"]["days"]
    printed = slipway(*words).stdout
    assert re.search(r"^cost .*GPU-hours, \$[\d,.]+ at \$2.5 an hour", printed, re.M)


def test_plan_compares_sizes_and_draws_them(tmp_path: Path) -> None:
    words = ("plan", "llama3_8b", "tokens=1T", "price=2", "--gpus", "8..32", "--deadline", "80d", "--goal", "gpus")
    out = json.loads(slipway(*words, "--json", "--plot", str(tmp_path / "sizes")).stdout)
    assert [size["gpus"] for size in out["sizes"]] == [8, 16, 32]
    [best] = [size for size in out["sizes"] if size["gpus"] == out["best"]]
    assert best["p_deadline"] >= 0.9 and all(s["p_deadline"] < 0.9 for s in out["sizes"] if s["gpus"] < out["best"])
    assert (tmp_path / "sizes.png").stat().st_size > 1000


def test_goodput_says_how_likely_the_deadline_is(tmp_path: Path) -> None:
    words = ("goodput", "llama3_8b", "gpus=64", "tokens=1T")
    soon, late = (
        json.loads(slipway(*words, "--deadline", days, "--json").stdout)["p_deadline"] for days in ("10d", "40d")
    )
    assert soon == 0.0 and late == 1.0
    assert "spares" in slipway(*words, "--plot", str(tmp_path / "goodput")).stdout
    assert (tmp_path / "goodput.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["check", "llama3_8b", "price=-1"], "cluster.price=-1.0 is not legal"),
        (["check", "llama3_8b", "tokens=1X"], "run.max_tokens='1X' is not legal"),
        (["plan", "llama3_8b", "--gpus", "64..8"], "--gpus 64..8 ends below its start"),
        (["plan", "llama3_8b", "--gpus", "many"], "--gpus many is not a range of GPUs"),
        (["plan", "llama3_8b", "--gpus", "8", "--deadline", "30"], "--deadline 30 is not a time"),
        (["plan", "llama3_8b", "--gpus", "8", "--deadline", "1d"], "the fastest, gpus=8, takes"),
        (["plan", "llama31_405b", "--gpus", "8"], "no size from 8 to 8 GPUs has a layout that fits"),
        (["goodput", "llama3_8b", "gpus=64", "cluster.mtbf_gpu_hours=0.001"], "the run never ends"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], sentence: str) -> None:
    assert sentence in slipway(*words, code=2).stderr


def test_a_range_of_gpus_is_doubled_and_has_its_end() -> None:
    assert counts_of("64..1000") == [64, 128, 256, 512, 1000]
    assert counts_of("96,64,64") == [64, 96]
    assert counts_of("8..8") == [8]
