"""Levers: what they cost, which of NVIDIA's a run takes over, and why it does not take the others."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from slipway import configs, planner
from slipway.configs import Spec, load
from slipway.configs.levers import nvidia_levers
from slipway.configs.overrides import text_of, value_of
from slipway.planner import nvidia
from slipway.planner.memory import memory
from slipway.planner.time.layer import output_weight_gradient_s
from slipway.planner.time.operations import Term
from slipway.planner.time.step import step_time
from slipway.planner.workload import workload_of


def _with(spec: Spec, **levers: Any) -> Spec:
    return replace(spec, levers=replace(spec.levers, **levers))


def _pipeline(*words: str) -> Spec:
    return load("llama3_70b", ["gpus=64", "layout.tp=4", "layout.pp=8", "layout.gbs=256", *words]).spec


def test_deferred_weight_gradients_take_memory_on_the_last_stage_and_time_from_the_pipeline() -> None:
    spec = _pipeline()
    before, after = memory(spec), memory(_with(spec, wgrad_deferral_limit=4))
    gained = [b.total_gib - a.total_gib for a, b in zip(before.stages, after.stages, strict=True)]
    logits_gradient = 2 * 8192 * spec.model.padded_vocab_size(4) / 4  # bf16, one micro-batch on one tensor rank
    inputs = 2 * 8192 / 4 * spec.model.hidden_size
    assert gained[:-1] == [0.0] * 7
    assert gained[-1] * 2**30 == pytest.approx(4 * (logits_gradient + inputs))
    seconds = [step_time(_with(spec, wgrad_deferral_limit=limit)).step_time_s for limit in (0, 2, 4, 8)]
    assert seconds == sorted(seconds, reverse=True) and seconds[0] > seconds[-1]
    every = step_time(_with(spec, wgrad_deferral_limit=10_000))
    assert sum(every.breakdown.values()) == pytest.approx(every.step_time_s)
    deferred = spec.batch.num_micro_batches * output_weight_gradient_s(workload_of(spec).context)
    stragglers = 1.05  # what a step is stretched by on eight nodes, at most
    assert seconds[0] - every.step_time_s < stragglers * deferred, "no more is saved than was deferred"


def test_a_pipeline_that_is_not_there_defers_nothing() -> None:
    spec = load("llama3_8b", ["layout.tp=2"]).spec
    assert step_time(_with(spec, wgrad_deferral_limit=22)) == step_time(spec)
    assert memory(_with(spec, wgrad_deferral_limit=22)) == memory(spec)
    assert planner.violations(_with(spec, wgrad_deferral_limit=22))[0].rule == "wgrad-deferral"


def test_optimizer_instances_trade_memory_for_communication_across_nodes() -> None:
    spec = load("llama3_8b", ["gpus=256", "layout.tp=1", "layout.gbs=2048"]).spec
    held = [memory(_with(spec, optimizer_instances=n)).stages[0].optimizer_gib for n in (1, 2, 4)]
    assert held[1] == pytest.approx(2 * held[0])
    assert held[2] == pytest.approx(4 * held[0])
    assert planner.violations(_with(spec, optimizer_instances=3))[0].rule == "optimizer-instances"


@pytest.mark.parametrize(
    ("name", "words", "slower", "faster"),
    [
        ("llama3_8b", "layout.tp=1", {"check_for_nan": True}, {"check_for_nan": False}),
        ("llama3_8b", "layout.tp=1", {"bucket_size": 1_000_000_000}, {"bucket_size": 40_000_000}),
        ("mixtral_8x7b", "layout.ep=8", {"moe_router_fusion": False}, {"moe_router_fusion": True}),
        ("deepseek_v3", "gpus=1024", {"expert_comm_overlap": False}, {"expert_comm_overlap": True}),
    ],
)
def test_a_lever_is_priced(name: str, words: str, slower: dict[str, Any], faster: dict[str, Any]) -> None:
    spec = planner.complete(load(name, words.split()))
    assert step_time(_with(spec, **slower)).step_time_s > step_time(_with(spec, **faster)).step_time_s


def test_sharp_halves_an_all_reduce_and_nothing_of_a_sharded_optimizer() -> None:
    spec = load("llama3_8b", ["gpus=256", "layout.tp=1", "layout.gbs=256", "layout.overlap_grad_reduce=false"]).spec
    plain = replace(spec, layout=replace(spec.layout, distributed_optimizer=False))
    steps = [step_time(_with(each, sharp=sharp)) for each in (plain, spec) for sharp in (False, True)]
    reduced = [step.breakdown[Term.data_parallel.value] for step in steps]
    assert reduced[1] == pytest.approx(reduced[0] / 2)
    assert reduced[3] == reduced[2]


def test_deepep_is_chosen_where_it_runs() -> None:
    def dispatcher(*words: str) -> str:
        return load("deepseek_v3", ["layout.ep=64", *words]).spec.dispatcher.value

    assert dispatcher() == "flex"
    assert dispatcher("gpu=gb200") == "alltoall"
    assert dispatcher("layout.ep=1", "layout.etp=1") == "alltoall"
    assert dispatcher("layout.dispatcher=allgather") == "allgather"


def test_a_run_has_the_levers_of_nvidias_recipe_where_nobody_set_them() -> None:
    spec = planner.complete(load("llama3_70b", ["gpus=64"]))
    assert spec.layout.tp_comm_overlap
    assert spec.levers.wgrad_deferral_limit == 22
    kept = planner.complete(
        load("llama3_70b", ["gpus=64", "layout.tp_comm_overlap=false", "levers.wgrad_deferral_limit=0"])
    )
    assert not kept.layout.tp_comm_overlap
    assert kept.levers.wgrad_deferral_limit == 0
    assert planner.complete(load("deepseek_v3")).levers.gc_interval == 60


def test_a_lever_that_is_illegal_or_does_not_fit_stays_off() -> None:
    whole = planner.complete(load("llama3_70b", ["gpus=64", "layout.tp=8", "layout.pp=1", "layout.cp=1"]))
    assert whole.levers.wgrad_deferral_limit == 0
    spec, untouched = _pipeline("layout.recompute=full"), frozenset({"levers.wgrad_deferral_limit"})
    needed = [memory(each).needed_gib for each in (spec, _with(spec, wgrad_deferral_limit=22))]
    assert needed[1] > needed[0]

    def taken(capacity_gib: float) -> int:
        on_gpu = replace(spec, gpu=replace(spec.gpu, usable_memory_gib=capacity_gib))
        return nvidia.with_nvidia_levers(on_gpu, untouched).levers.wgrad_deferral_limit

    assert taken(needed[0]) < taken(sum(needed) / 2) < 22, "as many as leave the run likely to fit"
    assert taken(1.1 * needed[1]) == 22


def test_every_difference_from_nvidia_has_a_reason() -> None:
    """In every recipe, on every GPU and in every precision for which NVIDIA publishes its settings."""
    seen = set()
    for name, gpu, precision in itertools.product(
        configs.recipe_names(), configs.gpu_names(), configs.precision_names()
    ):
        if not nvidia_levers(name, gpu, precision) or name.startswith("deepseek_v3_"):
            continue
        resolved = load(name, [f"gpu={gpu}", f"precision={precision}", "layout.tp=4", "layout.pp=4"], to_plan=True)
        spec = nvidia.with_nvidia_levers(resolved.spec, resolved.untouched)
        for each in nvidia.compare(spec, resolved.given):
            if each.theirs and not each.why:
                assert text_of(value_of(each.key, each.theirs)) == each.ours, each
            seen.add(bool(each.why))
    assert seen == {True, False}


def test_what_the_user_set_is_said_so() -> None:
    resolved = load("llama3_70b", ["gpus=64", "layout.tp_comm_overlap=false"])
    [row] = [
        each
        for each in nvidia.compare(planner.complete(resolved), resolved.given)
        if each.key == "layout.tp_comm_overlap"
    ]
    assert (row.theirs, row.ours, row.why) == ("true", "false", "you set it")
