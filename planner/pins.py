"""What a user gives of a layout is pinned: the search completes the rest, and says which pin leaves no layout."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from slipway.configs import Layout, Precision, Recompute, Refusal, Spec
from slipway.planner.layout import as_override
from slipway.planner.memory import memory
from slipway.planner.nvidia import with_nvidia_levers
from slipway.planner.rules import violations
from slipway.planner.search import SEARCHED, Candidate, Plan, plan
from slipway.planner.time.step import step_time

_NEAREST_OF = 16  # fastest layouts among which the one with the nearest value of a pin is looked for


def agrees(layout: Layout, given: Layout, pinned: frozenset[str]) -> bool:
    """Whether ``layout`` has the values of ``given`` in every pinned field, and uses what they configure."""
    if "recompute_modules" in pinned and given.recompute_modules and layout.recompute is not Recompute.selective:
        return False
    if pinned & {"recompute_method", "recompute_num_layers"} and layout.recompute is not Recompute.full:
        return False
    return all(getattr(layout, name) == getattr(given, name) for name in pinned)


def plan_pinned(spec: Spec, pinned: frozenset[str], top: int = 10, untouched: frozenset[str] = frozenset()) -> Plan:
    """As :func:`plan`, with the fields ``pinned`` of the layout as ``spec`` has them.

    Args:
        untouched: keys that nobody set. Those that are levers become NVIDIA's, where a layout can have them.

    Raises:
        Refusal: no legal layout with these values fits; it names the pin that binds, and the nearest value that works.
    """
    try:
        found = plan(spec, top, pinned=pinned)
        return replace(found, candidates=_with_levers(found.candidates, untouched))
    except Refusal as refusal:
        searched = [name for name in SEARCHED if name in pinned]
        if refusal.rule or not searched:
            raise
        raise _binding(spec, pinned, searched) or refusal from None


def _with_levers(candidates: list[Candidate], untouched: frozenset[str]) -> list[Candidate]:
    found = []
    for candidate in candidates:
        spec = with_nvidia_levers(candidate.spec, untouched)
        changed = spec is not candidate.spec
        found.append(Candidate(spec, step_time(spec), memory(spec)) if changed else candidate)
    return sorted(found, key=lambda candidate: candidate.time.step_time_s)


def _binding(spec: Spec, pinned: frozenset[str], searched: list[str]) -> Refusal | None:
    """Which of the pins together leave no layout; None where there is none without them either."""
    free = _without(spec, pinned - set(searched))
    if not free:
        return None
    binding = _together(spec, pinned, searched)
    given = ", ".join(as_override(spec.layout, name) for name in binding)
    message = f"no legal layout of {spec.model.name} with {given} fits {spec.gpus} {spec.gpu.name}"
    for name in binding:
        if candidates := _without(spec, pinned - {name}):
            best = _nearest(spec.layout, candidates, name)
            fix = f"The nearest value that works is {as_override(best.layout, name)}."
            return Refusal(message + _broken_rule(best.spec, spec.layout, name), fix)
    candidates = _without(spec, pinned - set(binding)) or free
    found = " ".join(as_override(candidates[0].layout, name) for name in searched)
    return Refusal(message, f"Together, {found} work.")


def _broken_rule(works: Spec, given: Layout, name: str) -> str:
    """The rule that a layout which works breaks with the given value, as the end of a message; empty: it is memory."""
    changed: dict[str, Any] = {name: getattr(given, name)}
    broken = violations(replace(works, layout=replace(works.layout, **changed)))
    return f": {broken[0].message.rstrip('.')}" if broken else ""


def _together(spec: Spec, pinned: frozenset[str], searched: list[str]) -> list[str]:
    """A smallest set of the pins that leaves no layout: without any one of them, the others leave some."""
    binding = list(searched)
    for name in searched:
        fewer = [other for other in binding if other != name]
        if fewer and not _without(spec, pinned - (set(searched) - set(fewer))):
            binding = fewer
    return binding


def _without(spec: Spec, pinned: frozenset[str]) -> list[Candidate]:
    try:
        return plan(spec, _NEAREST_OF, pinned=pinned).candidates
    except Refusal:
        return []


def _nearest(given: Layout, candidates: list[Candidate], name: str) -> Candidate:
    """The candidate whose value of ``name`` is nearest to the given one; of several, the fastest."""
    wanted = getattr(given, name)
    if not isinstance(wanted, int) or isinstance(wanted, bool):
        return candidates[0]
    return min(candidates, key=lambda found: abs(math.log2((getattr(found.layout, name) or 1) / (wanted or 1))))


def plan_precisions(
    spec: Spec,
    precisions: Iterable[Precision],
    top: int = 10,
    pinned: frozenset[str] = frozenset(),
    untouched: frozenset[str] = frozenset(),
) -> Plan:
    """As :func:`plan_pinned`, over several precisions: the fastest of all of them.

    Raises:
        Refusal: nothing fits in any of them.
    """
    plans = []
    for precision in precisions:
        try:
            plans.append(plan_pinned(replace(spec, precision=precision), pinned, top, untouched))
        except Refusal as refusal:
            last = refusal
    if not plans:
        raise last
    ranked = sorted((c for p in plans for c in p.candidates), key=lambda c: c.time.step_time_s)
    return Plan(
        ranked[:top], sum(p.considered for p in plans), sum(p.pruned for p in plans), sum(p.did_not_fit for p in plans)
    )
