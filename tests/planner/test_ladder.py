"""The ladder: each change, pasted behind the user's own command, does what it says."""

from __future__ import annotations

import pytest

from slipway import planner
from slipway.configs import load
from slipway.planner.ladder import ladder
from slipway.planner.memory import memory
from slipway.planner.memory.probability import LIKELY

CASES = [
    ("mixtral_8x7b", ["gpus=32", "layout.tp=1", "layout.pp=4", "layout.ep=8"]),
    ("llama3_70b", ["gpus=64", "layout.tp=8"]),
    ("llama3_8b", ["gpus=8", "layout.mbs=4", "layout.tp=1", "precision=fp8_current"]),
]


@pytest.mark.parametrize(("name", "given"), CASES, ids=[name for name, _ in CASES])
def test_a_change_that_is_pasted_frees_what_it_says(name: str, given: list[str]) -> None:
    resolved = load(name, given)
    start = planner.choose_layout(resolved)[0]
    before = memory(start).needed_gib
    rungs = ladder(start, resolved.untouched)
    legal = [rung for rung in rungs if rung.candidate is not None]
    assert len(legal) > 5
    for rung in legal:
        spec = planner.complete(load(name, [*given, *rung.overrides]))
        assert planner.is_legal(spec) and memory(spec).needed_gib == pytest.approx(before - rung.frees_gib)
        speed = planner.step_time(start).tokens_per_s_per_gpu / planner.step_time(spec).tokens_per_s_per_gpu
        assert rung.slower == pytest.approx(speed - 1)


@pytest.mark.parametrize(("name", "given"), CASES, ids=[name for name, _ in CASES])
def test_what_suffices_comes_first_and_the_cheapest_of_it_on_top(name: str, given: list[str]) -> None:
    rungs = ladder(planner.choose_layout(load(name, given))[0])
    likely = [rung for rung in rungs if rung.candidate and rung.candidate.p_fits >= LIKELY]
    assert rungs[: len(likely)] == likely == sorted(likely, key=lambda rung: rung.slower)
    assert all(rung.frees_gib > 0 for rung in rungs if rung.candidate)
    refused = [rung for rung in rungs if rung.candidate is None]
    assert rungs[len(rungs) - len(refused) :] == refused and all(rung.why_not for rung in refused)


def test_what_changes_the_numbers_says_so() -> None:
    rungs = {rung.overrides[0]: rung for rung in ladder(planner.choose_layout(load(*CASES[1]))[0])}
    assert "bf16" in rungs["precision.grad_reduce_in_fp32=false"].risk
    assert rungs["layout.recompute=full"].risk == ""
