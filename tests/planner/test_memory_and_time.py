"""Laws of memory and time that do not depend on the constants: conservation, monotonicity, published FLOP counts."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway import configs, planner
from slipway.configs import Calibration, Fsdp, Recompute, load
from slipway.configs.schema import layer_kinds
from slipway.planner.calibration import calibration_for
from slipway.planner.flops import model_flops_per_token
from slipway.planner.memory import Saved, StageMemory, in_flight, memory, stage_memory
from slipway.planner.numerics import Dtype
from slipway.planner.rules import SELECTIVE_MODULES
from slipway.planner.time.kernels import Device
from slipway.planner.time.operations import TERM_WORDS, Term
from slipway.planner.time.step import layer_cost, step_time, step_time_bound
from slipway.planner.workload import layer_context, workload_of

# Llama 3 70B in fp8 with sequences of 4,096 on 32 H100, as Megatron-Bridge's tuning notes have it
FP8_70B = [
    "gpus=32",
    "precision=fp8_current",
    "layout.seq_length=4096",
    "layout.gbs=32",
    "layout.tp=4",
    "layout.pp=4",
    "layout.vpp=5",
    "layout.recompute=selective",
]


def _spec(*overrides: str):  # type: ignore[no-untyped-def]
    return configs.load("llama3_70b", ["layout.tp=4", "layout.pp=4", "layout.vpp=5", "layout.cp=2", *overrides]).spec


@pytest.mark.parametrize(("name", "gflops"), [("llama3_8b", 51.5), ("llama3_70b", 449.2), ("llama31_405b", 2523.0)])
def test_flops_per_token_are_nvidias(name: str, gflops: float) -> None:
    # Megatron-Bridge performance summary, causal attention at 8,192
    assert model_flops_per_token(configs.load(name, ["layout.tp=1"]).spec) / 1e9 == pytest.approx(gflops, rel=2e-3)


def test_stages_add_up_and_the_peak_is_the_fullest() -> None:
    estimate = memory(_spec())
    for s in estimate.stages:
        parts = s.parameters_gib + s.gradients_gib + s.optimizer_gib + s.activations_gib + s.logits_gib + s.buffers_gib
        assert s.total_gib == pytest.approx(parts)
    assert estimate.peak_gib == max(s.total_gib for s in estimate.stages)


def test_recompute_trades_memory_for_time() -> None:
    none, full = _spec(), _spec("layout.recompute=full")
    assert memory(full).peak_gib < memory(none).peak_gib
    assert step_time(full).step_time_s > step_time(none).step_time_s


def test_sharding_the_optimizer_saves_what_it_shards() -> None:
    sharded = _spec("gpus=128")
    whole = replace(sharded, layout=replace(sharded.layout, distributed_optimizer=False))
    ranks = sharded.dp * sharded.layout.cp
    ratio = memory(whole).stages[0].optimizer_gib / memory(sharded).stages[0].optimizer_gib
    assert ratio == pytest.approx(ranks)
    fsdp = replace(sharded, layout=replace(sharded.layout, pp=1, vpp=1, fsdp=Fsdp.megatron))
    assert (
        memory(fsdp).stages[0].parameters_gib
        < memory(replace(fsdp, layout=replace(fsdp.layout, fsdp=Fsdp.none))).stages[0].parameters_gib
    )


def test_in_flight_micro_batches_are_those_of_the_schedule() -> None:
    assert [in_flight(s, 4, 1, 16) for s in range(4)] == [4, 3, 2, 1]
    assert in_flight(0, 4, 1, 2) == 2
    assert in_flight(0, 4, 2, 16) == pytest.approx(
        ((4 - 1) * 2 + 4 + 1) / 2
    )  # Megatron-Core's warm-up, in stages of two chunks


def test_more_data_parallel_ranks_never_slow_a_step_of_the_same_share() -> None:
    times = [step_time(_spec(f"gpus={n}", f"layout.gbs={n}")).step_time_s for n in (32, 64, 128, 256)]
    assert times == sorted(times), "the same work per rank takes no less time on more ranks"
    assert times[-1] < 1.1 * times[0]


def test_the_interval_contains_the_prediction_and_the_bound_is_below_it() -> None:
    spec = _spec()
    t = step_time(spec)
    assert t.low_s < t.step_time_s < t.high_s
    assert step_time_bound(workload_of(spec)) <= t.step_time_s
    spent = sum(t.breakdown.values())
    assert spent == pytest.approx(t.step_time_s, rel=0.02), "the breakdown sums to the step"


@pytest.mark.parametrize("name", configs.recipe_names())
def test_every_recipe_is_legal_and_fits_by_default(name: str) -> None:
    from slipway import planner

    verdict = planner.check(planner.complete(configs.load(name)))
    assert verdict.legal, verdict.violations
    assert verdict.fits
    assert (verdict.time and 0.05 < verdict.time.mfu < 0.75) or name.endswith("_tiny")


def test_selective_block_and_uniform_recompute_lie_between_none_and_full() -> None:
    def peak(*keys: str) -> float:
        return memory(_spec(*(f"layout.recompute{key}" for key in keys))).peak_gib

    none, full = peak("=none"), peak("=full")
    assert full < peak("=selective", "_modules=[mlp]") < none
    blocks = [peak("=full", "_method=block", f"_num_layers={layers}") for layers in (1, 5, 10, 20)]
    assert none > blocks[0] and blocks == sorted(blocks, reverse=True)
    assert blocks[-1] == full, "a stage has 20 layers, and all of them are recomputed"
    units = [peak("=full", "_method=uniform", f"_num_layers={layers}") for layers in (5, 10, 20)]
    assert full < units[0] and units == sorted(units), "a unit's layers exist at once while its backward pass runs"
    assert units[-1] < none


@pytest.mark.parametrize("modules", ["[core_attn]", "[core_attn,layernorm]"])
def test_published_runs_that_ran_out_of_memory_do_not_fit(modules: str) -> None:
    # Llama 3 70B, fp8, sequence 4,096 on 32 H100: NVIDIA-NeMo Megatron-Bridge, notes on memory tuning and recompute
    spec = configs.load("llama3_70b", [*FP8_70B, f"layout.recompute_modules={modules}"]).spec
    assert not memory(spec).fits


def test_low_rank_finetuning_has_hardly_any_weight_gradients_and_states() -> None:
    """Forward and input gradients remain, two thirds of the matrix work, and the thin products of the adapters."""
    whole = planner.check(
        planner.complete(load("llama3_70b", ["gpus=8", "layout.tp=8", "layout.gbs=32", "layout.seq_length=4096"]))
    )
    low = planner.check(
        planner.complete(
            load("llama3_70b", ["gpus=8", "layout.tp=8", "layout.gbs=32", "layout.seq_length=4096", "task=lora"])
        )
    )
    assert whole.time and low.time and whole.memory and low.memory
    assert 0.64 < low.time.breakdown["gemm"] / whole.time.breakdown["gemm"] < 0.82
    stage, full = low.memory.peak_stage, whole.memory.peak_stage
    assert 0 < stage.gradients_gib < 0.01 * full.gradients_gib
    assert 0 < stage.optimizer_gib < 0.01 * full.optimizer_gib
    assert stage.parameters_gib == pytest.approx(full.parameters_gib, rel=0.01)
    assert low.memory.checkpoint_gib < whole.memory.checkpoint_gib / 5


@pytest.mark.parametrize("module", SELECTIVE_MODULES)
def test_each_recomputed_module_costs_time_and_frees_memory(module: str) -> None:
    none = configs.load(
        "deepseek_v3", ["gpus=1024", "layout.tp=1", "layout.pp=1", "layout.ep=64", "layout.recompute=none"]
    ).spec
    some = replace(none, layout=replace(none.layout, recompute=Recompute.selective, recompute_modules=[module]))
    assert step_time(some).step_time_s > step_time(none).step_time_s
    kept, freed = memory(none).stages[0].activations_gib, memory(some).stages[0].activations_gib
    # fused attention keeps no scores: recomputing it frees nothing
    assert freed == kept if module == "core_attn" else freed < kept


def test_selective_recompute_without_names_is_megatron_cores_default() -> None:
    """It is core_attn, and its recompute runs fused attention a second time."""
    none, default, named = (
        configs.load(
            "llama3_8b", ["gpus=8", "layout.tp=1", f"layout.recompute={kind}", f"layout.recompute_modules=[{modules}]"]
        ).spec
        for kind, modules in (("none", ""), ("selective", ""), ("selective", "core_attn"))
    )
    assert step_time(default).step_time_s == step_time(named).step_time_s > step_time(none).step_time_s


def test_a_norm_fused_into_its_linear_layer_is_recomputed_with_it() -> None:
    """Llama 3 70B in fp8 on 32 H100: 593.6, 586.8 and 702 TFLOP/s per GPU.

    Source: NVIDIA-NeMo Megatron-Bridge, notes on activation recompute.
    """

    def measure(modules: str) -> tuple[float, float]:
        words = [*FP8_70B, "layout.tp_comm_overlap=true", f"layout.recompute_modules=[{modules}]"]
        spec = configs.load("llama3_70b", words).spec
        return memory(spec).peak_gib, step_time(spec).model_tflops_per_gpu

    assert measure("mlp")[1] == pytest.approx(593.6, rel=0.03)
    assert measure("mlp,core_attn")[1] == pytest.approx(586.8, rel=0.03)
    assert measure("core_attn,layernorm")[1] == pytest.approx(702, rel=0.03)
    assert measure("mlp")[0] == measure("mlp,core_attn")[0] < measure("core_attn,layernorm")[0]
    assert measure("mlp,layernorm") == measure("mlp"), (
        "the feed-forward's norm is recomputed with it, attention's is not"
    )


def test_recomputing_the_experts_includes_their_activation() -> None:
    none = configs.load("qwen3_30b_a3b", ["gpus=64", "layout.tp=1", "layout.ep=8", "layout.recompute=none"]).spec

    def seconds(*modules: str) -> float:
        lay = replace(none.layout, recompute=Recompute.selective, recompute_modules=list(modules))
        return step_time(replace(none, layout=lay)).step_time_s

    assert seconds("moe", "moe_act") == seconds("moe") > seconds("moe_act")


def test_a_router_with_groups_sends_to_fewer_nodes() -> None:
    """DeepSeek-V3: 8 experts of 256 in 4 groups of 8; compared with random draws."""
    from slipway.planner.time.experts import nodes_met

    deepseek, kimi = configs.model("deepseek_v3"), configs.model("kimi_k2")
    rng = np.random.default_rng(0)

    def drawn(nodes: int) -> float:
        met = []
        for _ in range(4000):
            groups = rng.choice(8, 4, replace=False)
            experts = rng.choice(128, 8, replace=False)  # of the 4 x 32
            met.append(len({(groups[e // 32] * 32 + e % 32) * nodes // 256 for e in experts}))
        return float(np.mean(met))

    for nodes in (2, 4, 8, 16):
        assert nodes_met(deepseek, nodes) == pytest.approx(drawn(nodes), rel=0.04)
    assert nodes_met(deepseek, 8) < nodes_met(kimi, 8) <= 8


def test_experts_in_every_second_layer() -> None:
    maverick = configs.model("llama4_maverick")
    assert [maverick.layer_is_moe(i) for i in range(4)] == [False, True, False, True]
    dense = replace(maverick, num_moe_experts=0)
    spec = configs.load("llama3_8b", ["gpus=512", "layout.tp=4", "layout.ep=128", "layout.etp=4"]).spec

    def seconds(model: configs.Model) -> float:
        return step_time(
            replace(spec, model=model, layout=replace(spec.layout, ep=128 if model.is_moe else 1))
        ).step_time_s

    assert seconds(dense) < seconds(maverick) < seconds(replace(maverick, moe_every=1))


def test_an_unfused_loss_moves_each_logit_more_often_and_keeps_an_fp32_copy() -> None:
    fused = configs.load("llama3_8b", ["gpus=8", "layout.tp=1"]).spec
    unfused = replace(fused, layout=replace(fused.layout, fused_cross_entropy=False))
    assert step_time(unfused).breakdown["loss"] > 1.2 * step_time(fused).breakdown["loss"]
    logits = fused.layout.mbs * fused.seq_length * fused.model.padded_vocab_size(1)
    assert memory(unfused).stages[-1].logits_gib - memory(fused).stages[-1].logits_gib == pytest.approx(
        4 * logits / 2**30
    )


def test_a_ring_of_context_ranks_pays_for_adding_up_its_steps() -> None:
    """Each step's output is rescaled into an fp32 sum, so two ranks with half the work take more than half the time."""
    alone = configs.load("llama3_8b", ["gpus=8", "layout.tp=1", "layout.cp=1"]).spec
    ring = replace(alone, layout=replace(alone.layout, cp=2))
    costs = [layer_cost(layer_context(s, calibration_for(s)), layer_kinds(s.model.shape)[0]) for s in (alone, ring)]
    whole, half = (c.forward[Term.elementwise] for c in costs)
    assert half > 0.55 * whole


def test_a_gemm_whose_last_wave_is_nearly_empty_is_slower_than_one_that_fills_the_gpu() -> None:
    device = Device(configs.gpu("h100"), replace(Calibration(name="test"), gemm_tail=1.0))
    tiles = configs.gpu("h100").multiprocessors
    full, spilled = (device.gemm(128.0, 256.0 * n, 8192.0, Dtype.bf16) / n for n in (tiles, tiles + 1))
    assert spilled > 1.1 * full
    hidden = Device(configs.gpu("h100"), replace(Calibration(name="test"), gemm_tail=0.0))
    full, spilled = (hidden.gemm(128.0, 256.0 * n, 8192.0, Dtype.bf16) / n for n in (tiles, tiles + 1))
    assert spilled == pytest.approx(full, rel=0.01)


def test_a_capacity_bounds_what_an_expert_takes_and_padding_fills_it() -> None:
    def peak_and_offload(factor: float, padded: bool) -> tuple[float, float]:
        spec = configs.load("mixtral_8x7b", ["gpus=64", "layout.tp=1", "layout.pp=4", "layout.ep=8"]).spec
        lay = replace(spec.layout, moe_expert_capacity_factor=factor, moe_pad_expert_input_to_capacity=padded)
        spec = replace(spec, layout=lay)
        return memory(spec).peak_stage.activations_gib, step_time(spec).step_time_s

    dropless, even, half, padded, twice = (
        peak_and_offload(*x) for x in ((0.0, False), (1.0, False), (0.5, False), (1.0, True), (2.0, True))
    )
    assert half[0] < even[0] == dropless[0] == padded[0] < twice[0]
    assert half[1] < even[1] < dropless[1]  # the busiest expert takes no more than the others
    assert padded[1] < twice[1]


def test_a_layer_that_predicts_a_further_token_costs_the_last_stage() -> None:
    plain = configs.load("llama3_8b", ["gpus=8", "layout.tp=1", "layout.pp=4"]).spec
    further = replace(plain, model=replace(plain.model, mtp_num_layers=1))
    before, after = memory(plain).stages, memory(further).stages
    assert [a.total_gib for a in after[:-1]] == [b.total_gib for b in before[:-1]]
    assert after[-1].parameters_gib > before[-1].parameters_gib
    assert after[-1].logits_gib == pytest.approx(2 * before[-1].logits_gib)
    assert step_time(further).breakdown["loss"] == pytest.approx(2 * step_time(plain).breakdown["loss"])
    assert model_flops_per_token(further) > model_flops_per_token(plain)


def test_offload_to_host_memory_takes_time_unless_the_link_is_fast() -> None:
    def peak_and_offload(gpu: str, layers: int) -> tuple[float, float]:
        spec = configs.load(
            "llama3_8b", [f"gpu={gpu}", "gpus=8", "layout.tp=1", f"layout.cpu_offload_layers={layers}"]
        ).spec
        return memory(spec).peak_gib, step_time(spec).breakdown.get("offload", 0.0)

    assert peak_and_offload("h100", 0)[1] == 0.0
    assert peak_and_offload("h100", 16)[0] < peak_and_offload("h100", 8)[0] < peak_and_offload("h100", 0)[0]
    assert peak_and_offload("h100", 16)[1] > peak_and_offload("h100", 8)[1] > 0.0
    assert peak_and_offload("gb300", 16)[1] == 0.0


MODULES = ["core_attn", "layernorm", "mla_up_proj", "mlp", "moe_act", "moe"]
COMPONENTS = ["parameters_gib", "gradients_gib", "optimizer_gib", "activations_gib", "logits_gib", "buffers_gib"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_component_is_negative_and_recomputing_more_never_needs_more(data: st.DataObject) -> None:
    """Any model and any two sets of recomputed modules of which one includes the other."""
    name = data.draw(st.sampled_from(["llama3_8b", "qwen3_30b_a3b", "deepseek_v3"]))
    backend = data.draw(st.sampled_from(["auto", "unfused"]))
    spec = configs.load(name, ["gpus=64", "layout.tp=1", f"layout.attention_backend={backend}"]).spec
    more = data.draw(st.lists(st.sampled_from(MODULES), unique=True, min_size=1))
    fewer = data.draw(st.lists(st.sampled_from(more), unique=True, min_size=1))

    def stages(modules: list[str]) -> list[StageMemory]:
        lay = replace(spec.layout, recompute=Recompute.selective, recompute_modules=modules)
        return stage_memory(replace(spec, layout=lay))

    for small, large in zip(stages(more), stages(fewer), strict=True):
        assert all(getattr(small, component) >= 0 for component in COMPONENTS)
        assert small.total_gib <= large.total_gib * (1 + 1e-12)


def test_recomputing_the_experts_frees_their_activation_once() -> None:
    saved = Saved(*[1.0] * len(fields(Saved)))
    assert saved.kept(("moe", "moe_act"), moe=True) == saved.kept(("moe",), moe=True)


def test_fp32_moves_elements_of_four_bytes() -> None:
    """Twice the bytes of bf16: without fixed costs, memory-bound kernels and collectives take twice the time."""
    keys = ["gpus=8", "layout.tp=2", "layout.recompute=none"]
    bf16, fp32 = (configs.load("llama3_8b", [*keys, f"precision={name}"]).spec for name in ("bf16", "fp32"))
    instant = replace(calibration_for(bf16), kernel_us=0.0, collective_us=0.0)
    narrow, wide = (step_time(spec, instant).breakdown for spec in (bf16, fp32))
    assert wide["elementwise"] == pytest.approx(2 * narrow["elementwise"])
    assert wide["tp"] == pytest.approx(2 * narrow["tp"])
    assert wide["attention"] > 1.5 * narrow["attention"], "TF32 has half the rate of bf16"


def test_every_term_of_the_breakdown_has_words() -> None:
    assert set(TERM_WORDS) == set(Term)
    assert set(step_time(_spec()).breakdown) <= {term.value for term in Term}


def test_nobody_computes_the_gradients_of_frozen_weights() -> None:
    """Two operations for each weight of a linear layer, which the counts of NeMo's and Megatron's meters include."""
    whole = configs.load("llama31_8b", ["task=sft", "layout.tp=1"]).spec
    adapted = configs.load("llama31_8b", ["task=lora", "layout.tp=1"]).spec
    model = whole.model
    norms = (2 * model.num_layers + 1) * model.hidden_size
    linear = planner.check(whole).parameters.total - model.vocab_size * model.hidden_size - norms
    saved = model_flops_per_token(whole) - model_flops_per_token(adapted)
    assert whole.seq_length == adapted.seq_length
    assert saved == 2 * linear
