"""Recipes of NeMo 2.0 that are not Slipway's: NeMo's own, a user's function, an export. They are configured apart."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from slipway import configs, planner
from slipway.configs import Refusal
from slipway.launch import foreign
from slipway.launch.foreign.kinds import nemo_recipe
from slipway.launch.foreign.terms import PathTerms
from tests.launch.test_cli import slipway

RECIPES = """
import os, socket
import nemo_run as run
from nemo.collections import llm

def good(num_nodes=1):
    import torch
    assert not torch.cuda.is_available() and os.environ["CUDA_VISIBLE_DEVICES"] == ""
    recipe = llm.llama3_8b.pretrain_recipe(name="mine", num_nodes=num_nodes)
    recipe.model.config.vocab_size = 128256
    recipe.trainer.strategy.tensor_model_parallel_size = 4
    recipe.trainer.strategy.sequence_parallel = True
    recipe.trainer.strategy.expert_tensor_model_parallel_size = 2  # swallowed by the strategy
    recipe.model.config.moe_z_loss_coeff, recipe.model.config.hidden_dropout = 1.0, 0.1
    print("text of the user's")
    return recipe

def raises():
    raise ValueError("not today")

def loops():
    while True:
        pass

def calls_out():
    return socket.create_connection(("127.0.0.1", PORT), timeout=5)

def exits():
    raise SystemExit(3)

def dies():
    os._exit(0)

def nothing():
    return None
"""


@pytest.mark.nemo
def test_a_users_function_is_configured_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without accelerator and network, within its time; whatever it does, the answer is one sentence."""
    monkeypatch.setattr(nemo_recipe, "CPU_S", 3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        path = tmp_path / "mine.py"
        path.write_text(RECIPES.replace("PORT", str(server.getsockname()[1])))
        names = ["good(num_nodes=2)", "raises", "loops", "calls_out", "exits", "dies", "nothing", "none"]
        asked = [(f"{path}:{name}", foreign.Request()) for name in names]
        changed = foreign.Request(("trainer.max_steps=7", "layout.tp=2", "gpu=h200"))
        found = nemo_recipe.read_targets([*asked, ("nemo:llama3_8b", changed), ("nemo:t5_3b", foreign.Request())])
        with pytest.raises(TimeoutError):
            server.accept()
    good, *refused, theirs, t5 = found
    assert isinstance(good, foreign.Reading), good
    assert isinstance(theirs, foreign.Reading) and isinstance(t5, Refusal)
    spec = good.resolved.spec
    assert (spec.gpus, spec.layout.tp, spec.layout.cp, spec.model.vocab_size) == (16, 4, 2, 128256)
    assert planner.parameters(spec).total == 8030261248 and good.dropout
    assert good.unknown == ["trainer.strategy.expert_tensor_model_parallel_size 2"]
    assert "model.config.moe_z_loss_coeff 1.0" in good.irrelevant and spec.model.hidden_dropout == 0.1
    assert (theirs.resolved.spec.run.max_steps, theirs.resolved.spec.layout.tp) == (7, 2)
    sentences = [each.sentence() for each in refused if isinstance(each, Refusal)]
    expected = (
        "raises ValueError: not today (mine.py line",
        "did not return within 3 s of CPU",
        "calls out to 127.0.0.1",
        "raises SystemExit: 3",
        "ended its process",
        "gives a NoneType",
        "has no function none; did you",
    )
    for words, sentence in zip(expected, sentences, strict=True):
        assert words in sentence and "\n" not in sentence
    assert "an encoder and a decoder" in t5.sentence()


@pytest.mark.nemo
def test_what_we_build_is_read_as_what_we_planned(in_child: Any) -> None:
    """One law, for every recipe: the built recipe read as a stranger's has its parameters, memory and time."""

    def differences() -> dict[str, str]:
        from slipway.configs.load import spec_from_record
        from slipway.launch.foreign.nemo.recipe import found_in
        from slipway.recipes.build import build

        wrong = {}
        for name in configs.recipe_names():
            spec = planner.complete(configs.load(name, ["precision=fp8_current"] if "3_8b" in name else []))
            found = spec_from_record(found_in(build(spec), name, name)["spec"])
            ours, theirs = planner.check(spec), planner.check(found)
            if ours.parameters != theirs.parameters:
                wrong[name] = f"{ours.parameters.total} {theirs.parameters.total}"
            elif ours.memory != theirs.memory or ours.time != theirs.time:
                wrong[name] = f"{spec.layout} {found.layout} {spec.levers} {found.levers}"
        return wrong

    assert in_child(differences) == {}


def _export(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


EXPORT = """_partial_: true
_target_: nemo.collections.llm.api.pretrain
trainer:
  _target_: nemo.lightning.pytorch.trainer.Trainer
  callbacks:
  - _target_: nemo.utils.exp_manager.TimingCallback
  - _target_: theirs.Callback
  strategy:
    _target_: nemo.lightning.pytorch.strategies.megatron_strategy.MegatronStrategy
    progress:
      _target_: os.system
"""


def test_classes_of_other_packages_are_named_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(module: str, request: dict[str, Any]) -> list[Any]:
        asked.append(request)
        return [{"refused": "enough", "fix": ""}]

    monkeypatch.setattr(nemo_recipe, "answers", refuse)
    with pytest.raises(Refusal, match="enough"):
        foreign.read(_export(tmp_path, EXPORT), foreign.Request(("trainer.num_nodes=2", "layout.tp=2")))
    (target,) = asked[0]["targets"]
    assert "theirs" not in json.dumps(target) and "os.system" not in json.dumps(target)
    assert target["changes"] == {"trainer.num_nodes": "2"}
    with pytest.raises(Refusal, match="not the recipe of a NeMo run"):
        foreign.read(_export(tmp_path, "_target_: os.system\ncommand: ls\n"), foreign.Request())


@pytest.mark.nemo
def test_an_export_is_the_recipe(in_child: Any, tmp_path: Path) -> None:
    def compared() -> list[Any]:
        from slipway.launch.export import dump
        from slipway.launch.foreign.nemo.recipe import configured, found_in
        from slipway.recipes.build import build

        spec = planner.complete(configs.load("mixtral_8x7b"))
        asked = nemo_recipe._of_file(foreign.reading.open_file(_export(tmp_path, dump(build(spec)))), foreign.Request())
        answers = [found_in(build(spec), "x", "x"), found_in(configured(asked.target), "x", "x")]
        return [answer["spec"] for answer in answers]

    built, exported = in_child(compared)
    assert built == exported


@pytest.mark.nemo
def test_the_terms_are_nemos(tmp_path: Path) -> None:
    done = slipway("check", "nemo:llama3_8b", "gpus=24", "layout.tp=3", "layout.cp=1", code=2)
    assert "trainer.strategy.tensor_model_parallel_size=3 does not divide the model's 32 attention heads" in done.stderr
    assert (
        "layout." not in done.stderr and "read as  NeMo 2.0 recipe, by the definitions of nemo_toolkit" in done.stdout
    )


def test_a_fix_names_paths() -> None:
    terms = PathTerms({"layout.tp": "a.tensor", "layout.sp": "a.sequence"}, {"layout.tp=1": "a.tensor off"})
    assert terms.say("tp=2 x pp=3 does not; use layout.tp=1 or layout.tp=4.") == (
        "a.tensor=2 x layout.pp=3 does not; use a.tensor off or a.tensor=4."
    )
    before = configs.Layout(tp=1)
    assert terms.changes(before, configs.Layout(tp=4)) == ["a.tensor=4", "a.sequence=true"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nemo:llama3_9b", "NeMo has no recipe 'llama3_9b'; did you mean"),
        ("nemo:llama3_8b(2)", "2 is not NAME=VALUE"),
        ("missing.py:recipe", "there is no file missing.py"),
    ],
)
def test_what_names_no_function_is_refused_before_anything_is_started(name: str, words: str) -> None:
    with pytest.raises(Refusal) as refused:
        nemo_recipe.asked_of(name, foreign.Request())
    assert words in refused.value.sentence()
