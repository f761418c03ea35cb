"""What a user gives of a layout is never changed: the search completes the rest, or says which pin leaves nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from slipway import planner
from slipway.configs import Recompute, Refusal, load
from slipway.planner.advise import advise
from slipway.planner.choose import published_layout
from slipway.planner.memory import memory
from slipway.planner.search import plan
from slipway.recipes.factory import spec_of


@pytest.mark.parametrize(
    ("name", "words", "field", "value"),
    [
        ("llama3_70b", ["gpus=64"], "tp", 8),
        ("llama3_70b", ["gpus=64"], "pp", 2),
        ("llama3_70b", ["gpus=64"], "vpp", 2),
        ("llama3_70b", ["gpus=64"], "cp", 4),
        ("llama3_8b", [], "mbs", 4),
        ("llama3_8b", [], "recompute", Recompute.full),
        ("llama3_8b", ["layout.recompute_modules=[mlp]"], "recompute", Recompute.selective),
        ("llama3_8b", [], "sp", False),
        ("llama3_8b", [], "distributed_optimizer", False),
        ("mixtral_8x7b", [], "ep", 2),
        ("deepseek_v3", [], "num_layers_in_last_pipeline_stage", 5),
    ],
)
def test_the_search_completes_what_is_pinned(name: str, words: list[str], field: str, value: Any) -> None:
    text = value.value if isinstance(value, Recompute) else str(value).lower()
    given = [*words, *([] if "recompute_modules" in "".join(words) else [f"layout.{field}={text}"])]
    resolved = load(name, given)
    found = planner.plan_pinned(resolved.spec, resolved.pinned, top=5).candidates
    assert found and all(getattr(c.layout, field) == value for c in found)
    best, _ = advise(resolved.spec, resolved.pinned)
    assert best.layout == found[0].layout
    if not resolved.layout_given:
        assert getattr(planner.complete(resolved).layout, field) == value


def test_the_factories_keep_what_they_are_given() -> None:
    assert spec_of("llama3_8b", {"mbs": 4}).layout.mbs == 4
    assert spec_of("llama3_8b", {"recompute": "full"}).layout.recompute is Recompute.full


@pytest.mark.parametrize("words", [["layout.mbs=2"], ["layout.tp=2", "layout.recompute=full"]])
def test_pruning_loses_nothing_beside_pins(words: list[str]) -> None:
    resolved = load("llama3_8b", ["gpus=8", "layout.gbs=64", *words])
    fast, slow = (plan(resolved.spec, 5, exhaustive=e, pinned=resolved.pinned) for e in (False, True))
    assert [c.time.step_time_s for c in fast.candidates] == pytest.approx([c.time.step_time_s for c in slow.candidates])


def test_a_published_layout_agrees_with_every_pin_or_is_not_used() -> None:
    words = ["gpus=64", "layout.gbs=128"]
    published = published_layout(load("llama31_70b", words).spec)
    assert published is not None and published.layout.recompute is not Recompute.full
    same = load("llama31_70b", [*words, f"layout.mbs={published.layout.mbs}"])
    assert planner.choose_layout(same)[1].startswith("published: ")
    spec, chosen_by = planner.choose_layout(load("llama31_70b", [*words, "layout.recompute=full"]))
    assert not chosen_by.startswith("published: ") and spec.layout.recompute is Recompute.full


def test_a_parallel_size_gives_the_layout_with_the_others_at_their_defaults() -> None:
    """The rule of check and the factories, on which scripts with explicit sizes rely; plan pins the size."""
    resolved = load("llama3_70b", ["gpus=64", "layout.tp=8"])
    spec, chosen_by = planner.choose_layout(resolved)
    assert (spec.layout.tp, spec.layout.pp, spec.layout.cp, chosen_by) == (8, 1, 1, "given")
    assert resolved.pinned == {"tp"}
    assert load("llama3_tiny").pinned == frozenset(), "a recipe's own layout is a default"


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("llama3_70b", ["gpus=64", "layout.tp=3"], "with layout.tp=3 fits.* layout.tp=4"),
        ("llama3_8b", ["layout.mbs=3"], "with layout.mbs=3 fits.* layout.mbs=4"),
        ("llama3_70b", ["gpus=64", "layout.mbs=1", "layout.tp=1", "layout.pp=1"], "nearest value that works|Together"),
        ("llama31_405b", ["gpus=8", "layout.gbs=8", "layout.tp=8"], "alone take|at least"),
    ],
)
def test_the_pin_that_binds_is_named_with_the_nearest_value(name: str, words: list[str], expected: str) -> None:
    resolved = load(name, words)
    with pytest.raises(Refusal) as refused:
        planner.plan_pinned(resolved.spec, resolved.pinned, top=1)
    assert re.search(expected, refused.value.sentence()), refused.value.sentence()


def test_fsdp_is_pinned_where_it_is_given() -> None:
    """A rule refuses it in training: it is not replaced in silence."""
    resolved = load("llama3_8b", ["layout.fsdp=megatron"])
    assert resolved.pinned == {"fsdp"}
    with pytest.raises(Refusal) as refused:
        planner.plan_pinned(resolved.spec, resolved.pinned, top=3)
    said = refused.value.sentence()
    assert said.startswith("no legal layout of llama3_8b with layout.fsdp=megatron fits 8 h100: ")
    assert "cannot be trained" in said
    assert said.endswith("The nearest value that works is layout.fsdp=none.")


def test_of_several_pins_those_that_bind_together_are_named() -> None:
    """TP1 and PP1 alone leave no layout of llama3_70b; the micro-batch is beside the point, and is not named."""
    words = ["gpus=64", "layout.mbs=1", "layout.tp=1", "layout.pp=1"]
    resolved = load("llama3_70b", words)
    with pytest.raises(Refusal) as refused:
        planner.plan_pinned(resolved.spec, resolved.pinned, top=1)
    said = refused.value.message
    assert "layout.tp=1, layout.pp=1 fits" in said
    assert "mbs" not in said
    without = [word for word in words if "mbs" not in word]
    for left_out in ("layout.tp=1", "layout.pp=1"):
        other = load("llama3_70b", [word for word in without if word != left_out])
        assert planner.plan_pinned(other.spec, other.pinned, top=1).candidates


def test_the_nearest_layout_keeps_what_is_given() -> None:
    for words in (["layout.tp=8"], ["layout.tp=8", "layout.mbs=2"], ["layout.pp=3", "layout.tp=4"]):
        resolved = load("llama3_70b", ["gpus=64", *words])
        spec, _ = planner.choose_layout(resolved)
        verdict = planner.check(spec)
        assert not (verdict.legal and verdict.fits)
        nearest = planner.nearest_good(spec, resolved.pinned)
        assert nearest is not None
        kept = {name: getattr(nearest.layout, name) == getattr(spec.layout, name) for name in resolved.pinned}
        if words == ["layout.pp=3", "layout.tp=4"]:
            assert kept == {"pp": False, "tp": True}, "three stages of 80 layers are illegal; TP4 is not"
        else:
            assert all(kept.values())


def test_a_default_that_ties_leaves_memory_to_spare_and_is_the_same_for_models_of_one_shape() -> None:
    roomy, why = planner.choose_layout(load("llama3_8b"))
    fastest = planner.plan(roomy, top=1).candidates[0]
    assert fastest.memory.headroom_gib < 0.05 * fastest.memory.capacity_gib, "else this proves nothing"
    needed = memory(roomy)
    assert needed.headroom_gib > 0.05 * needed.capacity_gib
    assert planner.step_time(roomy).step_time_s <= 1.05 * fastest.time.step_time_s, "the price of a likely fit"
    assert "slower than the fastest, and more likely to fit" in why
    same = [planner.complete(load(name, ["gpus=64"])).layout for name in ("llama3_70b", "llama31_70b")]
    assert same[0] == replace(same[1], source=same[0].source)


def test_a_published_layout_is_of_this_stack_and_drops_as_many_tokens() -> None:
    words = ["gpu=gb200", "gpus=64", "precision=fp8_current"]
    assert published_layout(load("mixtral_8x7b", words).spec) is None, "NeMo's run dropped tokens"
    drops = ["layout.moe_expert_capacity_factor=1", "layout.moe_pad_expert_input_to_capacity=true"]
    dropped = published_layout(load("mixtral_8x7b", [*words, *drops]).spec)
    assert dropped is not None and "docs.nvidia.com" in dropped.layout.source
