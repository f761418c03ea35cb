"""The command line: its help, exit codes and JSON, one sentence on stderr, and a start that imports nothing heavy."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slipway import configs

ROOT = Path(__file__).parents[2]
# Beside this Python; in the image, whose Python is Debian's, elsewhere on the path.
SLIPWAY = shutil.which("slipway", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") or "slipway"


def slipway(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([SLIPWAY, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_check_prints_the_promised_object() -> None:
    out = json.loads(
        slipway("check", "llama3_70b", "layout.tp=4", "layout.pp=4", "layout.vpp=5", "layout.cp=2", "--json").stdout
    )
    assert out["legal"] is True and out["fits"] is True and out["violations"] == []
    assert set(out["memory"]["stages"][0]) == {
        "stage",
        "parameters_gib",
        "gradients_gib",
        "optimizer_gib",
        "activations_gib",
        "logits_gib",
        "buffers_gib",
        "total_gib",
    }
    assert {"peak_gib", "capacity_gib", "stages"} <= set(out["memory"])
    assert {"total", "active", "per_rank"} == set(out["parameters"]) and len(out["parameters"]["per_rank"]) == 4
    assert {
        "step_time_s",
        "tokens_per_s_per_gpu",
        "model_tflops_per_gpu",
        "mfu",
        "bubble_fraction",
        "breakdown",
    } <= set(out["throughput"])


def test_an_illegal_layout_is_refused_with_the_nearest_legal_one() -> None:
    done = slipway("check", "llama3_70b", "layout.tp=3", "--json", code=2)
    out = json.loads(done.stdout)
    assert out["legal"] is False and out["fits"] is False
    assert {"rule", "message", "fix"} == set(out["violations"][0])
    assert out["violations"][0]["rule"] == "tp-heads"
    near = out["nearest"]
    moved = abs(math.log2(near["tp"] / 3)) + math.log2(near["pp"] * near["cp"])
    assert moved <= math.log2(4 / 3) + 2, "no further away than TP4 with FSDP, which fits"
    again = slipway(
        "check",
        "llama3_70b",
        *(f"layout.{k}={near[k]}" for k in ("tp", "pp", "vpp", "cp", "mbs", "recompute", "fsdp")),
        "--json",
    )
    assert json.loads(again.stdout)["fits"] is True
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_recipe_that_is_too_large_gets_a_layout_that_fits() -> None:
    done = slipway("check", "llama3_70b", "layout.tp=8", "--json", code=2)
    out = json.loads(done.stdout)
    assert out["legal"] is True and out["fits"] is False
    again = json.loads(slipway("check", "llama3_70b", "layout.tp=8", *out["nearest"]["changes"], "--json").stdout)
    assert again["fits"] is True and len(out["nearest"]["changes"]) < 4
    [first, *_] = out["ladder"]
    pasted = json.loads(slipway("check", "llama3_70b", "layout.tp=8", *first["overrides"], "--json").stdout)
    assert pasted["memory"]["needed_gib"] == pytest.approx(out["memory"]["needed_gib"] - first["frees_gib"])


def test_plan_ranks_and_explains(tmp_path: Path) -> None:
    out = json.loads(
        slipway(
            "plan", "llama3_8b", "gpu=h200", "gpus=8", "--top", "3", "--json", "--plot", str(tmp_path / "plan")
        ).stdout
    )
    assert len(out["candidates"]) == 3 and out["candidates"][0]["group"] == 1
    best = max(c["throughput"]["tokens_per_s_per_gpu"] for c in out["candidates"])
    for candidate in out["candidates"]:
        tied = best / candidate["throughput"]["tokens_per_s_per_gpu"] <= 1.03
        assert tied == (candidate["group"] == 1)
    assert all(c["layout"] and c["why"] for c in out["candidates"])
    for name in ("plan.png", "plan.svg", "plan_timeline.png", "plan_timeline.svg"):
        assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize("name", ["llama3_70b", "mixtral_8x7b"])
def test_advise_judges_every_technique(name: str) -> None:
    out = json.loads(slipway("advise", name, "--json").stdout)
    words = " ".join(t["technique"] for t in out["techniques"])
    for technique in ("DDP", "ZeRO-1", "ZeRO-3", "TP", "SP", "PP", "CP", "EP", "recompute", "offload"):
        assert technique in words
    assert all(t["why"] for t in out["techniques"])
    assert out["given"] is None and out["ladder"] == []


def test_advise_starts_from_the_layout_that_is_given() -> None:
    words = ("advise", "llama3_70b", "layout.tp=8")
    out = json.loads(slipway(*words, "--json").stdout)
    assert out["given"]["tp"] == 8 and out["given"]["pp"] == 1
    assert [rung for rung in out["ladder"] if rung["fits"]] and out["layout"]["tp"] == 8
    assert "Single changes to it that free memory" in slipway(*words).stdout


def test_list_keeps_the_recipes_that_every_word_names() -> None:
    assert {each["family"] for each in json.loads(slipway("list", "gemma", "--json").stdout)} == {
        "gemma",
        "gemma2",
        "gemma3",
    }
    assert [each["name"] for each in json.loads(slipway("list", "qwen3", "a22b", "--json").stdout)] == [
        "qwen3_235b_a22b"
    ]
    assert "no recipe's name or family holds lama9" in slipway("list", "lama9", code=2).stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["check", "lama3_8b"], "unknown recipe 'lama3_8b'; did you mean llama3_8b"),
        (["check", "llama3_8b", "gpu=z100"], "unknown gpu 'z100'"),
        (["check", "llama3_8b", "gpus=0"], "gpus=0 is not legal: it must be between 1 and 10,000,000"),
        (["validate", "/no/such.csv"], "there is no file /no/such.csv"),
        (["report", "/no/such"], "/no/such holds no run"),
        (["bogus"], "No such command"),
        (["check"], "Missing argument"),
        (["data", "prepare", "/no/such", "--tokenizer", "x", "--out", "y"], "there is no file or folder /no/such"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_2(words: list[str], sentence: str) -> None:
    done = slipway(*words, code=2)
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_list_and_show_need_no_nemo() -> None:
    listed = json.loads(slipway("list", "--json").stdout)
    assert [r["name"] for r in listed] == configs.recipe_names()
    rows = {r["key"]: r for r in json.loads(slipway("show", "llama3_8b", "layout.tp=2", "--json").stdout)["values"]}
    assert rows["layout.tp"]["set_by"] == "override"
    assert rows["model.hidden_size"]["value"] == 4096
    difference = json.loads(slipway("show", "llama3_8b", "--json").stdout)["upstream_difference"]
    assert "optim.config.adam_eps: 1e-05 -> 1e-08" in difference


def _imported_by(*words: str) -> set[str]:
    """The top-level modules that a command imports."""
    code = (
        "import sys\n"
        "from slipway.launch.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(ast.literal_eval(done.stderr))


def test_check_imports_nothing_heavy() -> None:
    heavy = {"torch", "nemo", "nemo_run", "megatron", "scipy", "matplotlib", "tensorboard", "rich", "typer"}
    assert not heavy & _imported_by("check", "llama3_70b", "layout.tp=4", "layout.pp=4", "layout.cp=2")


def test_help_imports_no_more_than_the_commands_names() -> None:
    assert not {"numpy", "omegaconf", "hydra", "yaml", "rich", "torch"} & _imported_by("--help")


def test_a_command_is_a_module_and_help_describes_it() -> None:
    names = sorted(path.stem for path in (ROOT / "launch/cli/commands").glob("[!_]*.py"))
    assert slipway("--commands").stdout.split() == names
    general = slipway("--help").stdout
    assert slipway("-h").stdout == slipway().stdout == general
    for name in names:
        assert re.search(rf"^  {name} +\S.*[a-z]$", general, re.M), f"{name}: one line, not cut short"
        own = slipway(name, "-h").stdout
        assert own.startswith(f"Usage: slipway {name} ")


def test_a_misspelled_command_is_told_the_nearest() -> None:
    assert "No such command 'chekc'. Did you mean check or checkpoint?" in slipway("chekc", "llama3_8b", code=2).stderr


def test_an_internal_error_shows_its_traceback_and_asks_for_a_report() -> None:
    code = (
        "import slipway.planner, sys\n"
        "slipway.planner.check = lambda spec: 1 / 0\n"
        "from slipway.launch.cli import main\n"
        "main()"
    )
    words = ["check", "llama3_8b", "layout.tp=1"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("slipway: internal error: please report it")


@pytest.fixture
def entrypoint(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The image's entry point as a user without a home, on a PATH that also has ImageMagick's compare."""
    (tmp_path / "compare").write_text("#!/bin/sh\necho ImageMagick\n")
    (tmp_path / "compare").chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | {"PATH": path}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(ROOT / "docker/entrypoint.sh"), *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return call


def test_the_image_takes_commands_of_slipway_and_other_programs(
    entrypoint: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    assert "llama3_8b" in entrypoint("list").stdout
    assert entrypoint("slipway", "--version").stdout == entrypoint("--version").stdout
    assert entrypoint("echo", "a b", "c").stdout == "a b c\n"
    assert entrypoint("/bin/sh", "-c", "echo $HOME").stdout.startswith("/tmp/home-")
    assert "Usage: slipway compare" in entrypoint("compare", "-h").stdout, "not another program of that name"
    assert "Did you mean check or checkpoint?" in entrypoint("chekc").stderr


def test_doctor_says_what_it_found_and_what_it_expected() -> None:
    done = subprocess.run([SLIPWAY, "doctor", "--json"], capture_output=True, text=True, timeout=60, check=False)
    findings = {f["subject"]: f for f in json.loads(done.stdout)}
    assert done.returncode == (0 if all(f["good"] or f["slows"] for f in findings.values()) else 2)
    assert findings["megatron-core"]["good"] and findings["megatron-core"]["wanted"] == "0.15.3"
    assert all(f["good"] or f["fix"] for f in findings.values())


def test_pinned_and_chosen_are_listed() -> None:
    planned = json.loads(slipway("plan", "llama3_70b", "gpus=64", "layout.tp=8", "--top", "2", "--json").stdout)
    assert planned["pinned"] == {"tp": 8} and "pp" in planned["chosen"] and "tp" not in planned["chosen"]
    assert {candidate["layout"]["tp"] for candidate in planned["candidates"]} == {8}
    checked = json.loads(slipway("check", "llama3_8b", "layout.recompute=full", "--json").stdout)
    assert checked["pinned"] == {"recompute": "full"} and checked["layout"]["recompute"] == "full"
    explicit = json.loads(slipway("check", "llama3_8b", "layout.tp=2", "--json").stdout)
    assert explicit["pinned"] == {"tp": 2} and explicit["chosen"] == []
    printed = slipway("check", "llama3_8b", "layout.mbs=4").stdout
    assert "given    layout.mbs=4; chosen: tp, pp, vpp, cp, ep, etp, recompute\n" in printed
    assert "given    layout.tp=2; by default: layout.pp=1" in slipway("check", "llama3_8b", "layout.tp=2").stdout
    assert "given    layout.tp=8; chosen: pp" in slipway("advise", "llama3_70b", "gpus=64", "layout.tp=8").stdout


def test_every_precision_of_a_plan_has_the_keys_that_are_given() -> None:
    sizes = [f"layout.{size}=1" for size in ("pp", "cp", "mbs")]
    words = ["plan", "llama3_8b", "--precisions", "fp8_current", "--top", "1", "--json", "layout.tp=2", *sizes]
    wide, narrow = (
        json.loads(slipway(*words, f"precision.grad_reduce_in_fp32={fp32}").stdout)["candidates"][0]["memory"]["stages"]
        for fp32 in ("true", "false")
    )
    assert narrow[0]["gradients_gib"] == wide[0]["gradients_gib"] / 2


def test_a_model_without_a_recipe_is_planned_by_its_own_name() -> None:
    """It is listed with --all, headed by its name, and not trained."""
    listed = {row["name"]: row["trained"] for row in json.loads(slipway("list", "--all", "--json").stdout)}
    assert listed["llama3_8b"] is True
    assert listed["nemotron3_nano_30b_a3b"] is False
    assert set(listed) == set(configs.recipe_names()) | set(configs.model_names())
    recipes = {row["name"] for row in json.loads(slipway("list", "--json").stdout)}
    assert recipes == set(configs.recipe_names())
    name = "nemotron3_nano_30b_a3b"
    assert slipway("check", name).stdout.startswith(f"{name} on 64 x H100")
    swapped = slipway("check", "mixtral_8x7b", f"model={name}").stdout
    assert swapped.startswith(f"{name} (in recipe mixtral_8x7b) on 64 x H100")
    assert slipway("plan", "mixtral_8x7b", f"model={name}", "--top", "1").stdout.startswith(f"{name} (in recipe")
    for words in (["export", name, "--out", "x.yaml"], ["rehearse", name]):
        assert (
            f"{name} is a model without a recipe: it can be planned for, not trained" in slipway(*words, code=2).stderr
        )
    assert "did you mean nemotron3_nano_30b_a3b" in slipway("check", "nemotron3_nano_30b", code=2).stderr


def test_every_model_without_a_recipe_has_a_start_for_its_plan() -> None:
    for name in configs.planned_only_names():
        resolved = configs.load(name, to_plan=True)
        assert resolved.spec.model.name == resolved.spec.name == name
        assert resolved.provenance["gpus"] == "default of a model without a recipe"


def test_the_shell_completes_commands_and_options() -> None:
    def completed(*words: str) -> str:
        asked = {
            "_SLIPWAY_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["slipway", *words]),
            "COMP_CWORD": str(len(words)),
        }
        return subprocess.run([SLIPWAY], env=os.environ | asked, capture_output=True, text=True, check=False).stdout

    assert "plain,check\n" in completed("che")
    assert "plain,--precisions\n" in completed("plan", "--pre")
