"""``slipway new``: a recipe outside the checkout, as files without code, that every command knows by its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slipway import configs, planner
from slipway.configs import Refusal
from slipway.launch.foreign.megatron.optimizer import READ
from slipway.launch.own.donor import donor_of
from slipway.launch.own.recipe import draft, write
from tests.launch.test_cli import slipway
from tests.launch.test_foreign import HUGGING_FACE, LLAMA3_8B, _read, _write

QWEN = HUGGING_FACE["llama3_8b"] | {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_hidden_layers": 4, "hidden_size": 1024,
    "intermediate_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 4, "rope_theta": 1e6,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "vocab_size": 32000,
}  # fmt: skip


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "own"
    monkeypatch.setenv("SLIPWAY_CONFIGS", str(folder))
    folder.mkdir()
    return folder


def test_a_script_becomes_a_recipe_with_its_layout_and_optimizer(own: Path, tmp_path: Path) -> None:
    """One law: the recipe has the parameters, memory and time of the script."""
    text = LLAMA3_8B.replace("--lr 3e-4", "--lr 3e-4 --min-lr 3e-5 --lr-decay-style cosine --lr-warmup-iters 10")
    path = _write(tmp_path, text.replace("--bf16", "--bf16 --moe-token-dispatcher-type alltoall"))
    done = json.loads(slipway("new", "mine", "--from", str(path), "--json").stdout)
    assert done["trained"] and sorted(Path(file).parent.name for file in done["files"]) == ["model", "optim", "recipe"]
    theirs, ours = _read(path).resolved.spec, configs.load("mine").spec
    assert (ours.optim.lr, ours.optim.min_lr, ours.optim.warmup_steps, ours.run.max_steps) == (3e-4, 3e-5, 10, 100)
    assert theirs.optim.name == READ and theirs.optim.schedule is ours.optim.schedule
    a, b = planner.check(theirs, planner.Framework.megatron_lm), planner.check(ours)
    assert (a.parameters, a.memory, a.time) == (b.parameters, b.memory, b.time)
    assert "planned-only" not in [found.rule for found in b.advice]
    assert "mine" in slipway("list").stdout and "(given)" in slipway("check", "mine").stdout


@pytest.mark.parametrize("name", configs.recipe_names())
def test_a_recipe_of_a_recipe_is_the_same_run(name: str, own: Path) -> None:
    """Written and loaded again, only names and sources differ."""
    resolved = configs.load(name)
    if resolved.spec.model.name == "deepseek_v3" and name != "deepseek_v3":
        resolved = configs.load("deepseek_v3")
    write(draft("copy", resolved, name))
    ours, theirs = configs.load("copy").spec, resolved.spec
    assert (ours.precision, ours.levers, ours.layout.gbs) == (theirs.precision, theirs.levers, theirs.layout.gbs)
    assert not resolved.layout_given or ours.layout == theirs.layout
    a, b = planner.parameters(theirs), planner.parameters(ours)
    assert (a.total, a.active) == (b.total, b.active)
    donor = donor_of(resolved.spec.model)
    assert donor and donor.model.family == resolved.spec.model.family


def test_what_no_class_trains_is_a_model_to_plan_for(own: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hybrid"
    folder.mkdir()
    _write(folder, json.dumps(HUGGING_FACE["nemotron3_nano_30b_a3b"]), "config.json")
    done = json.loads(slipway("new", "hybrid", "--from", str(folder), "--json").stdout)
    assert not done["trained"] and [Path(file).parent.name for file in done["files"]] == ["model"]
    assert any("planned for by its name, and not trained" in note for note in done["notes"])
    assert configs.load("hybrid", to_plan=True).spec.model.hybrid_override_pattern.startswith("MEMEM*")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Mine", "is no name for a recipe"),
        ("llama3_8b", "Slipway's own"),
        ("gpt_22b", "there is a model gpt_22b already"),
    ],
)
def test_a_name_that_cannot_be_taken_is_refused(name: str, words: str, own: Path) -> None:
    with pytest.raises(Refusal, match=words):
        draft(name, configs.load("llama3_8b"), "llama3_8b")
    assert not list(own.rglob("*.yaml"))


def test_nothing_stays_of_a_recipe_that_is_refused(own: Path) -> None:
    made = draft("mine", configs.load("llama3_8b"), "llama3_8b")
    made.texts["recipe"] += "layout:\n  tp: 0\n"
    with pytest.raises(Refusal):
        write(made)
    assert not list(own.rglob("*.*"))


@pytest.mark.nemo
def test_a_hugging_face_model_is_rehearsed_and_known_to_nemo(own: Path, tmp_path: Path) -> None:
    """The biases, the base of RoPE and the epsilon of the config.json reach what trains."""
    folder = tmp_path / "small"
    folder.mkdir()
    _write(folder, json.dumps(QWEN), "config.json")
    done = json.loads(slipway("new", "small_qwen", "--from", str(folder), "gpus=2", "--json").stdout)
    assert done["trained"]
    model = configs.load("small_qwen").spec.model
    assert (model.add_qkv_bias, model.rotary_base, model.layernorm_epsilon, model.tied) == (True, 1e6, 1e-6, True)
    out = json.loads(slipway("rehearse", "small_qwen", "layout.tp=2", "--json").stdout)
    assert out["max_abs_diff"] < 1e-5
    words = [str(Path(sys.executable).parent / "nemo"), "llm", "pretrain", "--factory", "small_qwen(tp=2)", "--dryrun"]
    environment: dict[str, Any] = os.environ | {"NEMORUN_HOME": str(tmp_path), "COLUMNS": "200"}
    ran = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert ran.returncode == 0 and "small_qwen" in ran.stdout, ran.stderr[-2000:]
