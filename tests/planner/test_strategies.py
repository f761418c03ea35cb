"""Every kind of parallelism beside each other: what each shards, and that the table's best is the best."""

from __future__ import annotations

import json

import pytest

from slipway.configs import load
from slipway.planner.memory import FRAGMENTATION
from slipway.planner.strategies import Strategy, cases, compare_strategies
from tests.launch.test_cli import slipway


@pytest.fixture(scope="module")
def large() -> dict[str, Strategy]:
    return {each.name: each for each in compare_strategies(load("llama3_70b", ["gpus=64"]).spec)}


def test_zero_shards_states_then_gradients_then_weights(large: dict[str, Strategy]) -> None:
    """arXiv:1910.02054, figure 1, with Megatron-Core's 2 + 4 + 12 bytes over 64 ranks."""
    ddp, one, two, three = (large[name].parts for name in ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3 (FSDP)"))
    assert one["optimizer_gib"] == pytest.approx(ddp["optimizer_gib"] / 64)
    assert one["gradients_gib"] == ddp["gradients_gib"]
    assert two["gradients_gib"] == pytest.approx(one["gradients_gib"] / 64)
    assert two["parameters_gib"] == one["parameters_gib"]
    assert three["parameters_gib"] == pytest.approx(one["parameters_gib"] / 64)
    needed = [large[name].needed_gib for name in ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3 (FSDP)")]
    assert needed == sorted(needed, reverse=True)


def test_the_parts_are_what_the_gpu_needs(large: dict[str, Strategy]) -> None:
    for each in large.values():
        if each.best is not None:
            outside = each.best.memory.outside_gib
            assert each.needed_gib == pytest.approx(FRAGMENTATION * sum(each.parts.values()) + outside)
            assert each.fits == (each.needed_gib <= each.best.memory.capacity_gib)
        assert each.why


def test_the_fastest_that_fits_says_so_and_no_other_does(large: dict[str, Strategy]) -> None:
    steps = {each.name: each.best.time.step_time_s for each in large.values() if each.fits and each.best}
    best = min(steps, key=lambda name: steps[name])
    assert [each.name for each in large.values() if each.why.startswith("the fastest")] == [best]
    assert best == "4D: TP x PP x CP x DP", "as NVIDIA trains it on 64 H100"
    assert not large["DDP"].fits and "alone take" in large["DDP"].why


def test_a_small_model_needs_no_model_parallelism() -> None:
    found = {each.name: each for each in compare_strategies(load("llama32_1b", ["gpus=8"]).spec)}
    assert found["DDP"].fits and found["ZeRO-1"].fits
    [fastest] = [each for each in found.values() if each.why.startswith("the fastest")]
    assert fastest.name in ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3 (FSDP)")


def test_the_cases_follow_the_model_and_the_hardware() -> None:
    small = {case.name: case.sentence for case in cases(load("llama32_1b", ["gpus=16"]).spec)}
    large = {case.name: case.sentence for case in cases(load("llama31_405b", ["gpus=576", "layout.gbs=504"]).spec)}
    assert "can hold it whole" in small["the largest layer"]
    assert "must be sharded" in large["the largest layer"]
    assert "does not run" in large["one node"] and "MFU" in small["one node"]
    assert "6.25 instead of 50 GB/s" in small["slow network"] and "131,072 tokens" in small["long context"]


def test_the_command_prints_the_table() -> None:
    words = ("strategies", "mixtral_8x7b", "gpus=64")
    out = json.loads(slipway(*words, "--json").stdout)
    names = [each["strategy"] for each in out["strategies"]]
    for technique in ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "TP", "PP", "CP", "EP", "2D", "3D"):
        assert any(technique in name for name in names)
    assert set(out["cases"]) == {"the largest layer", "one node", "slow network", "long context"}
    assert "2D: EP x DP" in slipway(*words).stdout
