"""``performance_mode`` of NeMo's recipes: the fastest layout that fits, with the switches of NVIDIA's recipes.

NeMo's ``pretrain_performance_optimizations`` and its performance scripts (2.7.3) reduce gradients in bf16 and do not
check them for NaN. Each such switch is kept where it is legal and predicted to be at least as fast as without it. The
levers that change nothing but speed are on anyway (:mod:`slipway.planner.levers`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slipway.configs import Refusal, Resolved, Spec
from slipway.planner.choose import split_layers
from slipway.planner.layout import chosen_overrides
from slipway.planner.nvidia import with_nvidia_levers
from slipway.planner.pins import plan_pinned
from slipway.planner.rules import require_legal
from slipway.planner.time.step import step_time

_SWITCHES: tuple[tuple[str, str, bool], ...] = (
    ("precision", "grad_reduce_in_fp32", False),
    ("levers", "check_for_nan", False),
)
"""The switches of NVIDIA's recipes: group, field and value."""


def fastest(resolved: Resolved) -> tuple[Spec, list[str]]:
    """The fastest form of a recipe under what the user gave, and what it sets, as ``key=value``.

    Raises:
        Refusal: no legal layout with what is given fits, or the given one is illegal.
    """
    start, sets = resolved.spec, []
    best = _planned(start, resolved)
    for group, name, value in _SWITCHES:
        key = f"{group}.{name}"
        if key in resolved.given or getattr(getattr(start, group), name) is value:
            continue
        switched = _with(start, group, name, value)
        try:
            tried = _planned(switched, resolved)
        except Refusal:
            continue
        if step_time(tried).step_time_s <= step_time(best).step_time_s:
            start, best = switched, tried
            sets.append(f"{key}={str(value).lower()}")
    return best, [*([] if resolved.layout_given else chosen_overrides(best.layout)), *sets]


def _with(spec: Spec, group: str, name: str, value: bool) -> Spec:
    changed: dict[str, Any] = {group: replace(getattr(spec, group), **{name: value})}
    return replace(spec, **changed)


def _planned(spec: Spec, resolved: Resolved) -> Spec:
    """``spec`` in its fastest layout, or in the one that is given.

    Raises:
        Refusal: no layout fits, or the given one is illegal.
    """
    if not resolved.layout_given:
        return plan_pinned(spec, resolved.pinned, 1, resolved.untouched).candidates[0].spec
    given = with_nvidia_levers(split_layers(spec), resolved.untouched)
    require_legal(given)
    return given
