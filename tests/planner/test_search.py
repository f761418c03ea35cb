"""The search returns what exhaustive costing returns, legal and fitting."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from slipway import configs, planner
from slipway.configs import Refusal
from slipway.planner.advise import advise
from slipway.planner.memory import (
    FRAGMENTATION,
    REAL_EXPERT_LOAD,
    expert_load_that_fits,
    has_room,
    memory,
    stage_memory,
)
from slipway.planner.search import _recomputes, _shapes, _splits, plan
from slipway.planner.workload import workload_of


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("llama3_8b", ["gpus=8", "layout.gbs=64"]),
        ("llama2_13b", ["gpus=16", "layout.gbs=64"]),
        ("mixtral_8x7b", ["gpus=16", "layout.gbs=32"]),
        ("llama3_8b", ["gpus=8", "layout.gbs=64", "model.num_layers=31"]),
    ],
)
def test_pruning_loses_nothing(name: str, overrides: list[str]) -> None:
    spec = configs.load(name, overrides).spec
    fast, slow = plan(spec, 5), plan(spec, 5, exhaustive=True)
    assert [c.time.step_time_s for c in fast.candidates] == pytest.approx([c.time.step_time_s for c in slow.candidates])
    assert fast.considered < slow.considered


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("llama3_8b", ["gpus=8", "layout.gbs=32"]),
        ("mixtral_8x7b", ["gpus=16", "layout.gbs=4"]),
        ("llama3_8b", ["gpus=4", "layout.gbs=8", "model.num_layers=31"]),
    ],
)
def test_what_is_rejected_early_does_not_fit(name: str, overrides: list[str]) -> None:
    """The search without its bounds and its cheap tests of memory: every layout judged by memory() and step_time()."""
    spec = configs.load(name, overrides).spec
    times = []
    for split in _splits(spec):
        for mode, modules in _recomputes(spec.model):
            group = replace(split, recompute=mode, recompute_modules=list(modules))
            for shape, _ in _shapes(spec, split):
                trial = replace(spec, layout=shape.of(group))
                if planner.is_legal(trial) and has_room(workload_of(trial), memory(trial)):
                    times.append(planner.step_time(trial).step_time_s)
    assert [c.time.step_time_s for c in plan(spec, 20).candidates] == sorted(times)[:20]


def test_candidates_are_legal_fit_and_are_ranked() -> None:
    found = plan(configs.load("llama3_70b").spec, 10)
    times = [c.time.step_time_s for c in found.candidates]
    assert times == sorted(times)
    for c in found.candidates:
        assert planner.is_legal(c.spec)
        assert c.memory.fits
        assert planner.why_slower(c, found.candidates[0])


def test_experts_have_room_for_real_routing() -> None:
    """What fits with an even load only is not chosen, unless nothing else fits; the load that fits is the one that
    fills the GPU.
    """
    spec = configs.load("mixtral_8x22b").spec
    even, real = (plan(spec, 1, expert_load=load).candidates[0] for load in (1.0, REAL_EXPERT_LOAD))
    assert expert_load_that_fits(even.spec) < REAL_EXPERT_LOAD <= expert_load_that_fits(real.spec)
    assert even.time.step_time_s < real.time.step_time_s
    load = expert_load_that_fits(real.spec)
    full = max(s.total_gib for s in stage_memory(real.spec, expert_load=load))
    assert full * FRAGMENTATION + real.memory.outside_gib == pytest.approx(real.memory.capacity_gib, rel=1e-3)
    assert math.isinf(expert_load_that_fits(configs.load("llama3_8b", ["layout.tp=1"]).spec))


def test_layers_that_do_not_divide_leave_the_last_stage_shorter() -> None:
    found = plan(configs.load("deepseek_v3").spec, 1).candidates[0]
    assert found.layout.pp > 1
    assert 0 < found.layout.num_layers_in_last_pipeline_stage < 61 / found.layout.pp
    assert planner.is_legal(found.spec)


def test_what_cannot_fit_is_refused_in_one_sentence() -> None:
    with pytest.raises(Refusal, match="no legal layout of llama31_405b on 8 h100"):
        plan(configs.load("llama31_405b", ["gpus=8", "layout.gbs=8"]).spec)


def test_the_given_layout_stays_and_a_missing_one_is_chosen() -> None:
    given, why = planner.choose_layout(configs.load("llama3_70b", ["layout.tp=8", "layout.pp=2"]))
    assert (given.layout.tp, given.layout.pp, why) == (8, 2, "given")
    published, why = planner.choose_layout(configs.load("llama31_70b", ["gpus=64", "layout.gbs=128"]))
    assert why.startswith("published: ")
    assert published.layout.source


def test_precisions_compete_and_the_gpu_limits_them() -> None:
    spec = configs.load("llama3_8b", ["gpus=8", "layout.gbs=64"]).spec
    found = planner.plan_precisions(spec, [configs.precision(n) for n in configs.precision_names()], 40)
    names = {c.spec.precision.name for c in found.candidates}
    assert found.candidates[0].spec.precision.gemm == "fp8"
    assert "mxfp8" not in names, "an H100 has none"


@pytest.mark.parametrize(
    ("name", "overrides", "reason"),
    [
        ("llama3_8b", ["precision=mxfp8"], "precision=mxfp8 on h100"),
        ("llama31_405b", ["gpus=8", "layout.gbs=8"], "optimizer states alone take [0-9.]+ GiB"),
        ("llama3_8b", ["gpus=8", "layout.cpu_offload_layers=3", "layout.schedule=zero_bubble"], "break rule offload"),
    ],
)
def test_a_search_without_an_answer_says_what_refuses_or_fills(name: str, overrides: list[str], reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        plan(configs.load(name, overrides).spec, 1)


def test_advice_names_the_rule_that_requires_a_technique() -> None:
    spec = configs.load("llama3_8b", ["gpus=64", "precision=fp8_delayed"]).spec
    zero = next(a for a in advise(spec)[1] if a.technique.startswith("ZeRO-1"))
    assert zero.use
    assert "required: without it" in zero.why
    assert "fp8 parameters" in zero.why


def test_a_cluster_file_that_is_missing_is_named() -> None:
    with pytest.raises(Refusal, match=r"cluster=elsewhere/site.yaml: no such file /"):
        configs.load("llama3_8b", ["cluster=elsewhere/site.yaml"])


def test_layouts_that_tie_are_one_group_led_by_the_published_or_simplest() -> None:
    """VPP 20 against VPP 5 is no ranking: their predictions differ by less than published pairs are told apart by."""
    found = plan(configs.load("llama3_70b", ["gpus=64"]).spec, 24).candidates
    groups = planner.tie_groups(found)
    assert sorted(map(id, found)) == sorted(id(candidate) for group in groups for candidate in group)
    fastest = [min(candidate.time.step_time_s for candidate in group) for group in groups]
    assert fastest == sorted(fastest)
    for group, start in zip(groups, fastest, strict=True):
        assert all(candidate.time.step_time_s <= planner.TIE * start for candidate in group)
    assert all(after > planner.TIE * before for before, after in itertools.pairwise(fastest))
    first = groups[0][0].layout
    assert (first.tp, first.pp, first.vpp, first.cp) == (4, 4, 5, 2), "NVIDIA's layout on 64 H100"
