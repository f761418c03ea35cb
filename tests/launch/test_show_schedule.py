"""``slipway show NAME --schedule``: the text, the JSON and the picture say what the recipe's paper says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SLIPWAY = str(Path(sys.executable).parent / "slipway")


def show(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([SLIPWAY, "show", *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_deepseek_is_shown_as_its_paper_describes_it(tmp_path: Path) -> None:
    picture = tmp_path / "schedule.svg"
    printed = show("deepseek_v3", "--schedule", "--plot", str(picture)).stdout
    assert "deepseek_v3: 14.8 T tokens in 243,761 steps" in printed
    assert "3,072 to 15,360" in printed and "0.1 to 0.3" in printed
    assert "scaled by 40 from step 0 on" in printed and "published; not part of this run" in printed
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "167,468 10 T 0.00022 15,360 62.91 M 0.001 0.1" in lines
    assert "learning rate" in picture.read_text() and "mtp_loss_scaling_factor" in picture.read_text()


def test_json_has_the_turns_the_line_and_the_time_of_the_ramp() -> None:
    out = json.loads(show("llama31_405b", "--schedule", "--json").stdout)
    assert [(turn["gbs"], turn["step"]) for turn in out["turns"]][:3] == [(512, 0), (1024, 61), (1024, 8000)]
    run = out["run"]
    assert [part["gbs"] for part in run["batches"]] == [512, 1024, 2048]
    assert sum(part["steps"] for part in run["batches"]) == run["steps"]
    assert sum(part["steps"] * part["gbs"] for part in run["batches"]) * 8192 == run["tokens"]
    assert run["seconds"] == pytest.approx(sum(part["steps"] * part["step_time_s"] for part in run["batches"]))
    rates = [sample["lr"] for sample in out["samples"]]
    assert max(rates) == 8e-5 and len(rates) > 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--plot", "a.png"), "--schedule was not given"),
        (("--schedule", "--plot", "a.pdf"), "ends neither in .png nor in .svg"),
        (("--schedule", "--plot", "/nowhere/a.png"), "there is no folder /nowhere"),
        (("--schedule", "model.rope_scaling_factor=2"), "llama3_8b has no scaling of RoPE"),
        (("--schedule", "optim.changes=[mtp_loss_scaling_factor 0.1 from 1T tokens]"), "has no multi-token prediction"),
    ],
)
def test_what_cannot_be_drawn_is_refused(words: tuple[str, ...], message: str) -> None:
    done = show("llama3_8b", *words, code=2)
    assert message in done.stderr


def test_a_schedule_is_shown_where_no_layout_fits() -> None:
    assert "15 T tokens" in show("llama3_70b", "--schedule", "gpus=1").stdout
