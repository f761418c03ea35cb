"""A layout is named in one place: its words, its overrides and its key agree with the fields that it has."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway import configs, planner
from slipway.configs import Dispatcher, Fsdp, Layout, Recompute, Spec
from slipway.planner.layout import PARALLEL, SIZES, as_overrides, chosen_overrides, describe, key, on_one_rank, sizes

_RECIPE = "llama3_8b"
_quick = settings(max_examples=12, deadline=None, database=None)


@functools.cache
def _base() -> Spec:
    return configs.load(_RECIPE).spec


_size = st.integers(1, 64)
_layouts = st.builds(
    Layout,
    **dict.fromkeys(("tp", "pp", "vpp", "cp", "ep", "mbs", "gbs"), _size),
    etp=st.integers(0, 8),
    sp=st.sampled_from([None, True, False]),
    seq_length=st.sampled_from([0, 4096]),
    recompute=st.sampled_from(Recompute),
    recompute_modules=st.lists(st.sampled_from(["mlp", "moe_act", "layernorm"]), unique=True),
    recompute_method=st.sampled_from(["", "uniform", "block"]),
    fsdp=st.sampled_from(Fsdp),
    dispatcher=st.sampled_from(Dispatcher),
    moe_expert_capacity_factor=st.sampled_from([0.0, 1.25]),
    num_layers_in_last_pipeline_stage=st.integers(0, 8),
    account_for_loss=st.booleans(),
    attention_backend=st.sampled_from(["auto", "flash"]),
)


@_quick
@given(_layouts)
def test_a_layout_given_as_overrides_is_loaded_back(layout: Layout) -> None:
    loaded = configs.load(_RECIPE, as_overrides(layout)).spec.layout
    assert replace(loaded, source="") == layout
    assert key(loaded) == key(layout)


@_quick
@given(_layouts, _layouts)
def test_two_layouts_have_one_key_only_if_they_are_equal(one: Layout, other: Layout) -> None:
    assert (key(one) == key(other)) == (one == other)
    assert hash(key(one)) == hash(key(replace(one, source="elsewhere")))


@_quick
@given(_layouts)
def test_what_the_search_chooses_is_enough_to_repeat_its_choice(chosen: Layout) -> None:
    """The user's own options come from the same command line; everything that the search sets is named."""
    names = {override.partition("=")[0].removeprefix("layout.") for override in chosen_overrides(chosen)}
    changed = {f.name for f in dataclasses.fields(Layout) if getattr(chosen, f.name) != getattr(Layout(), f.name)}
    searched = {*PARALLEL, "mbs", "recompute", "recompute_modules", "fsdp", "account_for_loss"}
    assert changed & searched <= names


@_quick
@given(_layouts)
def test_every_size_is_named_once_and_in_order(layout: Layout) -> None:
    spec = replace(_base(), layout=layout)
    assert list(sizes(spec)) == list(SIZES)
    words = describe(spec).split()
    for name in ("tp", "pp", "dp", "mbs", "gbs"):
        assert f"{name.upper()}{sizes(spec)[name]}" in words
    assert ("VPP" in describe(spec)) == (layout.vpp > 1)


@_quick
@given(_layouts)
def test_one_rank_splits_nothing(layout: Layout) -> None:
    whole = on_one_rank(layout)
    assert all(getattr(whole, name) <= 1 for name in PARALLEL)
    assert whole.gbs == layout.gbs
    assert whole.recompute is layout.recompute


@pytest.mark.parametrize("name", ["llama3_8b", "llama31_8b", "qwen3_8b"])
def test_no_default_is_a_layout_that_cannot_be_resumed(name: str) -> None:
    """Neither published nor searched; on the GPU of the headline and on GB200."""
    for gpu in ("h100", "gb200"):
        spec = planner.complete(configs.load(name, [f"gpu={gpu}", "gpus=8"]))
        assert spec.layout.fsdp is Fsdp.none
        planner.require_legal(spec)
    given = replace(spec, layout=replace(spec.layout, fsdp=Fsdp.megatron))
    assert [v.rule for v in planner.violations(given)] == ["fsdp-resume"]
