"""``layout.schedule`` is a choice that check prices: bubbles are the closed forms, memory is what is in flight."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipway import configs, planner
from slipway.configs import Refusal, Schedule, Spec
from slipway.planner.memory import in_flight, memory
from slipway.planner.pictures import draw_timeline
from slipway.planner.search import plan
from slipway.planner.time.schedule import Kind, kind_of, pipeline_time


def _spec(*overrides: str) -> Spec:
    keys = ["gpus=64", "layout.tp=4", "layout.pp=4", "layout.gbs=64", *overrides]
    return configs.load("llama3_70b", keys).spec


@pytest.mark.parametrize(("pp", "m"), [(2, 4), (4, 16), (8, 64), (16, 128)])
def test_bubble_fractions_of_equal_stages_are_the_closed_forms(pp: int, m: int) -> None:
    """F = 1 and B = 2 on each stage. ZB-H1: the drain is filled with weight gradients (arXiv:2401.10241, table 2)."""
    forward, backward = [[1.0]] * pp, [[2.0]] * pp
    for kind in (Kind.one_f_one_b, Kind.gpipe):
        assert pipeline_time(forward, backward, m, 0.0, kind)[1] == pytest.approx((pp - 1) / (m + pp - 1))
    vpp = 2
    chunks = [[1.0 / vpp] * vpp] * pp, [[2.0 / vpp] * vpp] * pp
    bubble = pipeline_time(*chunks, m, 0.0, Kind.interleaved)[1]
    assert bubble == pytest.approx((pp - 1) / (vpp * m + pp - 1))
    idle = pp - 1.0  # (p - 1)(F + B - W) with B and W half of the backward pass each
    assert pipeline_time(forward, backward, m, 0.0, Kind.zero_bubble)[1] == pytest.approx(idle / (3 * m + idle))


def test_auto_is_what_megatron_core_runs() -> None:
    assert kind_of(_spec().layout) is Kind.one_f_one_b
    assert kind_of(_spec("layout.vpp=5").layout) is Kind.interleaved
    for keys in (["layout.schedule=1f1b"], ["layout.schedule=interleaved", "layout.vpp=5"]):
        chosen, auto = _spec(*keys), _spec(*keys[1:])
        assert planner.step_time(chosen) == planner.step_time(auto)
        assert memory(chosen) == memory(auto)


def test_gpipe_holds_every_micro_batch_and_zero_bubble_what_1f1b_holds() -> None:
    assert [in_flight(stage, 4, 1, 16, Schedule.gpipe) for stage in range(4)] == [16] * 4
    assert [in_flight(stage, 4, 1, 16, Schedule.zero_bubble) for stage in range(4)] == [4, 3, 2, 1]


@pytest.mark.parametrize("name", ["gpipe", "zero_bubble"])
def test_the_search_keeps_the_schedule_and_loses_nothing(name: str) -> None:
    keys = ["gpus=8", "layout.gbs=32", f"layout.schedule={name}"]
    spec = configs.load("llama3_8b", keys).spec
    fast, slow = plan(spec, 3), plan(spec, 3, exhaustive=True)
    assert [c.time.step_time_s for c in fast.candidates] == [c.time.step_time_s for c in slow.candidates]
    for candidate in fast.candidates:
        assert candidate.layout.schedule.value == name
        assert candidate.layout.pp > 1
        assert candidate.layout.vpp == 1


def test_without_a_schedule_the_search_chooses_what_can_be_trained() -> None:
    found = plan(configs.load("llama3_8b", ["gpus=8", "layout.gbs=32"]).spec, 10)
    assert {c.layout.schedule for c in found.candidates} == {Schedule.auto}


def test_the_timeline_shows_the_chosen_schedule(tmp_path: Path) -> None:
    spec = _spec("layout.schedule=zero_bubble")
    drawn = draw_timeline(planner.step_time(spec), 16, tmp_path / "zero", "", kind_of(spec.layout))
    assert all(path.stat().st_size for path in drawn)


@pytest.mark.nemo
def test_what_megatron_core_does_not_run_is_refused_at_build() -> None:
    from slipway.recipes.build import build

    with pytest.raises(Refusal, match="layout.schedule=gpipe can be planned for but not trained"):
        build(_spec("layout.schedule=gpipe"))
