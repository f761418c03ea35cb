"""How many GPUs: the sizes that no other beats, and the best one under a goal and a deadline."""

from __future__ import annotations

import math

import pytest

from slipway.configs import load
from slipway.planner.scale import IN_TIME, Goal, Size, best_size, not_dominated, sizes

DAY_S = 86_400.0
COUNTS = (7, 64, 256, 1024)


@pytest.fixture(scope="module")
def found() -> list[Size]:
    return list(sizes(load("llama3_70b", ["tokens=1T", "price=2"]), COUNTS, 60 * DAY_S))


def test_a_size_without_a_layout_says_why(found: list[Size]) -> None:
    assert found[0].candidate is None and found[0].why_not and math.isinf(found[0].seconds)
    assert [size.gpus for size in found] == list(COUNTS)


def test_every_size_trains_the_same_tokens(found: list[Size]) -> None:
    for size in found[1:]:
        assert size.candidate is not None and size.goodput is not None
        steps = 1e12 / size.candidate.spec.batch.tokens
        assert size.step_seconds == pytest.approx(steps * size.candidate.time.step_time_s, rel=1e-4)
        assert size.seconds == pytest.approx(size.step_seconds / size.goodput.value)
        assert size.cost.dollars == pytest.approx(2 * size.gpus * size.seconds / 3600)


def test_no_size_on_the_line_is_beaten_and_every_other_is(found: list[Size]) -> None:
    able, kept = found[1:], not_dominated(found)
    for size in able:
        beaten = any(
            other.seconds <= size.seconds and other.cost.gpu_hours < size.cost.gpu_hours
            for other in able
            if other is not size
        )
        assert beaten != (size in kept)


def test_the_best_size_has_least_of_the_goal_among_those_in_time(found: list[Size]) -> None:
    in_time = [size for size in found if (size.p_in_time or 0) >= IN_TIME]
    assert in_time and len(in_time) < len(found[1:])
    best = {goal: best_size(found, goal) for goal in Goal}
    assert best[Goal.days] == min(in_time, key=lambda size: size.seconds)
    assert best[Goal.dollars] == min(in_time, key=lambda size: size.cost.gpu_hours)
    assert best[Goal.gpus] == min(in_time, key=lambda size: size.gpus)
    never = [Size(8, why_not="no layout")]
    assert best_size(never, Goal.days) is None
