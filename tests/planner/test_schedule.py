"""The simulated schedules agree with the papers' closed forms, and none is faster than the lower bound."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway.planner.time.schedule import Kind, lower_bound, pipeline_time, simulate


@pytest.mark.parametrize("kind", [Kind.gpipe, Kind.one_f_one_b])
@pytest.mark.parametrize(("pp", "m"), [(2, 4), (4, 8), (8, 32)])
def test_bubble_of_equal_stages(kind: Kind, pp: int, m: int) -> None:
    line = simulate(kind, [[1.0]] * pp, [[2.0]] * pp, m)
    assert line.makespan == pytest.approx((m + pp - 1) * 3.0)  # arXiv:2104.04473, section 2.2.1


@pytest.mark.parametrize("vpp", [2, 4])
def test_interleaving_divides_the_bubble(vpp: int) -> None:
    pp, m = 4, 8
    line = simulate(Kind.interleaved, [[1.0 / vpp] * vpp] * pp, [[2.0 / vpp] * vpp] * pp, m)
    assert line.makespan == pytest.approx(3.0 * m + 3.0 * (pp - 1) / vpp)  # arXiv:2104.04473, section 2.2.2


def test_zero_bubble_is_below_1f1b_with_the_same_work() -> None:
    pp, m = 4, 8
    plain = simulate(Kind.one_f_one_b, [[1.0]] * pp, [[2.0]] * pp, m)
    zero = simulate(Kind.zero_bubble, [[1.0]] * pp, [[2.0]] * pp, m)
    assert zero.makespan < plain.makespan
    assert zero.busy == pytest.approx(plain.busy)


_times = st.floats(0.1, 3.0)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 3), st.integers(1, 5))
def test_no_schedule_beats_the_bound(data: st.DataObject, pp: int, vpp: int, rounds: int) -> None:
    vpp = vpp if pp > 1 else 1
    m = rounds * pp
    forward = [[data.draw(_times) for _ in range(vpp)] for _ in range(pp)]
    backward = [[data.draw(_times) for _ in range(vpp)] for _ in range(pp)]
    total, bubble = pipeline_time(forward, backward, m, 0.0)
    assert total >= lower_bound(forward, backward, m) - 1e-9
    assert 0 <= bubble < 1


def test_every_pass_runs_once_and_in_order() -> None:
    line = simulate(Kind.interleaved, [[1.0, 1.0]] * 2, [[2.0, 2.0]] * 2, 4)
    ended = {(t.phase, t.stage, t.chunk, t.micro_batch): t for t in line.tasks}
    assert len(ended) == len(line.tasks) == 2 * 2 * 2 * 4
    for (phase, stage, chunk, i), task in ended.items():
        if phase == "F" and stage:
            assert task.start >= ended[("F", stage - 1, chunk, i)].stop
        if phase == "B":
            assert task.start >= ended[("F", stage, chunk, i)].stop


def test_long_steps_are_extended_at_the_busiest_stages_pace() -> None:
    forward, backward = [[1.0], [1.5], [1.0]], [[2.0], [2.5], [2.0]]
    exact = simulate(Kind.one_f_one_b, forward, backward, 96).makespan
    assert pipeline_time(forward, backward, 96, 0.0)[0] == pytest.approx(exact, rel=1e-3)
