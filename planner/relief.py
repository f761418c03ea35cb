"""The single changes of a run's layout that free a given amount of memory, the cheapest first."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from typing import Any

from slipway.configs import Layout, Recompute, Spec
from slipway.planner.layout import as_override
from slipway.planner.memory import workload_memory
from slipway.planner.rules import Framework, violations
from slipway.planner.time.step import workload_step_time
from slipway.planner.workload import workload_of

SELECTIVE = ("layernorm", "moe_act", "mlp", "core_attn", "mla_up_proj")  # what one module's recomputation saves


@dataclass(frozen=True)
class Relief:
    """One change of the layout.

    Attributes:
        changes: the fields that change, as ``key=value`` overrides.
        saves_gib: what the device needs less.
        costs_s: what a step takes longer; negative if it takes less.
    """

    spec: Spec
    changes: tuple[str, ...]
    saves_gib: float
    costs_s: float


def reliefs(spec: Spec, gib: float, framework: Framework = Framework.nemo, lifted: Container[str] = ()) -> list[Relief]:
    """The legal single changes that free at least ``gib``, those first that cost the least time.

    Args:
        spec: a complete, legal spec.
        framework, lifted: as in :func:`slipway.planner.check`.
    """
    work = workload_of(spec)
    needed, seconds = workload_memory(work).needed_gib, workload_step_time(work).step_time_s
    found = []
    for fields in _changes(spec):
        other = replace(spec, layout=replace(spec.layout, **fields))
        if any(broken.rule not in lifted for broken in violations(other, framework=framework)):
            continue
        work = workload_of(other)
        saved = needed - workload_memory(work).needed_gib
        if saved >= gib:
            changes = tuple(as_override(other.layout, name) for name in fields)
            found.append(Relief(other, changes, saved, workload_step_time(work).step_time_s - seconds))
    return sorted(found, key=lambda relief: relief.costs_s)


def _changes(spec: Spec) -> Iterator[dict[str, Any]]:
    """One change of the layout each, as the fields that have to change together."""
    layout = spec.layout
    if layout.recompute is Recompute.none:
        yield from ({"recompute": Recompute.selective, "recompute_modules": [module]} for module in SELECTIVE)
    if layout.recompute is not Recompute.full:
        yield {"recompute": Recompute.full, **({"recompute_modules": []} if layout.recompute_modules else {})}
    if layout.mbs > 1:
        yield {"mbs": layout.mbs // 2}
    if not layout.distributed_optimizer and spec.dp > 1:
        yield {"distributed_optimizer": True}
    if not layout.sequence_parallel and layout.tp > 1:
        yield {"sp": True}
    if not layout.optimizer_cpu_offload:
        yield {"optimizer_cpu_offload": True}
    yield from _larger(layout, spec)
    if layout.vpp > 1:
        yield {"vpp": 1}


def _larger(layout: Layout, spec: Spec) -> Iterator[dict[str, Any]]:
    """Twice of one parallel size."""
    for name in ("tp", "cp", *(("ep",) if spec.model.is_moe else ())):
        yield {name: 2 * getattr(layout, name)}
    yield {"pp": 2 * layout.pp}
    if layout.vpp > 1:
        yield {"pp": 2 * layout.pp, "vpp": max(1, layout.vpp // 2)}
