"""NeMo's factories that ours hide: their parameters work on ours, and they stay reachable."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from slipway import configs, planner
from slipway.configs import Refusal, load
from slipway.recipes.factory import PARAMETERS, overrides
from tests import forked


@pytest.mark.nemo
def test_every_parameter_of_a_hidden_factory_is_one_of_ours(in_child: Any) -> None:
    """By name, and with NeMo's own default."""

    def compare() -> dict[str, list[str]]:
        from nemo.collections import llm

        from slipway.recipes.factory import factory

        out = {}
        for name in configs.recipe_names():
            theirs = getattr(getattr(llm, name, None), "pretrain_recipe", None)
            if theirs is None:
                continue
            parameters = inspect.signature(theirs).parameters
            ours = inspect.signature(factory(name)).parameters
            missing = [each for each in parameters if each not in ours]
            defaults = {each: p.default for each, p in parameters.items() if each != "fn"}
            for key in overrides(name, defaults):
                load(name, [key] if not key.startswith("layout.") else [])
            out[name] = missing
        return out

    found = in_child(compare)
    assert len(found) == 67
    assert not {name: missing for name, missing in found.items() if missing}


def test_nemos_names_are_our_keys() -> None:
    given: dict[str, Any] = {
        "tensor_parallelism": 4,
        "sequence_parallelism": True,
        "global_batch_size": 32,
        "max_lr": 3e-4,
        "precision": "bf16-mixed",
        "max_steps": 100,
        "constant_steps": 10,
    }
    assert set(overrides("qwen3_8b", given)) == {
        "layout.tp=4",
        "layout.sp=True",
        "layout.gbs=32",
        "optim.lr=0.0003",
        "precision=bf16",
        "run.max_steps=100",
        "optim.decay_steps=90",
    }
    assert overrides("deepseek_v3", {"use_mtp": False}) == ["model.mtp_num_layers=0"]
    assert overrides("deepseek_v3", {"use_mtp": True}) == []
    for wrong, expected in (
        ({"use_mtp": True}, "the model has no multi-token prediction"),
        ({"tp": 2, "tensor_parallelism": 4}, "tp and tensor_parallelism both set layout.tp"),
        ({"constant_steps": 5}, "Give max_steps too|counts from the end of max_steps"),
        ({"accumulate_grad_batches": 2}, "Megatron-Core accumulates micro-batches itself"),
    ):
        with pytest.raises(Refusal, match=expected):
            overrides("llama3_8b", wrong)
    assert {"performance_mode", "fn", "use_mtp"} <= set(PARAMETERS)


def test_performance_mode_is_the_fastest_that_keeps_what_is_given() -> None:
    for words in ([], ["layout.mbs=1"], ["layout.tp=4"], ["precision.grad_reduce_in_fp32=true"]):
        resolved = load("llama3_8b", words)
        spec, sets = planner.fastest(resolved)
        assert planner.check(spec).legal
        assert planner.check(spec).fits
        assert planner.step_time(spec).step_time_s <= planner.step_time(planner.complete(resolved)).step_time_s
        for name in resolved.pinned:
            assert getattr(spec.layout, name) == getattr(resolved.spec.layout, name)
        kept = bool(words and words[0].startswith("precision"))
        assert spec.precision.grad_reduce_in_fp32 is kept
        assert ("precision.grad_reduce_in_fp32=false" in sets) is not kept
        said = load("llama3_8b", [*words, *sets]).spec
        assert (said.layout.tp, said.layout.mbs, said.precision) == (spec.layout.tp, spec.layout.mbs, spec.precision)


@pytest.mark.nemo
def test_hidden_factories_and_nemos_switches_at_the_front_door() -> None:
    theirs = forked.nemo("llm", "pretrain", "--factory", "nemo_llama3_8b", "--dryrun")
    assert theirs.returncode == 0, theirs.stderr
    assert "CosineAnnealingScheduler(" in theirs.stdout
    assert "StagedSchedule(" not in theirs.stdout
    ours = forked.nemo("llm", "pretrain", "--factory", "llama3_8b(performance_mode=True)", "--dryrun")
    assert ours.returncode == 0, ours.stderr
    assert "slipway: performance_mode sets layout.tp=" in ours.stderr
    assert "grad_reduce_in_fp32=False" in ours.stdout


@pytest.mark.nemo
def test_a_function_of_ones_own_is_called_with_the_recipes_parts(in_child: Any) -> None:
    def built() -> list[Any]:
        from nemo.collections import llm

        from slipway.recipes.llama3 import llama3_tiny
        from slipway.recipes.runtime.start import pretrain

        own, nemos = llama3_tiny(fn=_own), llama3_tiny(fn=llm.pretrain, limit_test_batches=7)
        same = set(own.__arguments__) == set(nemos.__arguments__)
        return [own.__fn_or_cls__ is _own, nemos.__fn_or_cls__ is pretrain, nemos.trainer.limit_test_batches, same]

    assert in_child(built) == [True, True, 7, True]


def _own(model: Any, data: Any, trainer: Any, log: Any = None, resume: Any = None, optim: Any = None) -> None:
    """A function with the parameters of ``llm.pretrain``."""
