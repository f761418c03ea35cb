"""The layout of a recipe: the one that was given, else a published one, else the planner's fastest that fits."""

from __future__ import annotations

import csv
import functools
import math
from dataclasses import replace

from slipway import configs
from slipway.configs import Fsdp, Model, Recompute, Refusal, Resolved, Spec
from slipway.configs.load import ROOT
from slipway.planner.goodput import with_save_interval
from slipway.planner.layout import PARALLEL, with_sizes
from slipway.planner.memory.probability import LIKELY, p_fits
from slipway.planner.nvidia import with_nvidia_levers
from slipway.planner.pins import agrees, plan_pinned
from slipway.planner.rules import is_legal
from slipway.planner.rules.context import SHORT_SEQUENCE
from slipway.planner.search import SEARCHED, Candidate, plan


@functools.cache
def _published() -> list[dict[str, str]]:
    path = ROOT / "layout" / "published.csv"
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


_OUR_STACK = "megatron_core"


def _comparable(spec: Spec) -> list[dict[str, str]]:
    """The rows of this stack that drop as many tokens as ``spec``; the others are layouts of another run."""
    capacity = spec.layout.moe_expert_capacity_factor
    return [row for row in _published() if row["stack"] == _OUR_STACK and float(row["capacity_factor"]) == capacity]


def published_layout(spec: Spec, pinned: frozenset[str] = frozenset()) -> Spec | None:
    """``spec`` with the fastest published layout of its model, GPU, count and precision, legal and likely to fit.

    It must have the values of ``spec`` in the fields ``pinned``.
    """
    best: tuple[float, Spec] | None = None
    for row in _comparable(spec):
        if (row["model"], row["gpu"], row["precision"]) != (spec.model.name, spec.gpu.name, spec.precision.name):
            continue
        if int(row["gpus"]) != spec.gpus or int(row["seq_length"]) != spec.seq_length:
            continue
        layout = replace(
            with_sizes(spec.layout, {name: row[name] for name in (*PARALLEL, "mbs")}),
            fsdp=Fsdp(row["fsdp"]),
            recompute=Recompute(row["recompute"]),
            source=row["source"],
        )
        trial = split_layers(replace(spec, layout=layout))
        rate = float(row["tokens_per_s_per_gpu"])
        if (
            agrees(trial.layout, spec.layout, pinned)
            and is_legal(trial)
            and p_fits(trial) >= LIKELY  # with the routing of a real run: published speeds have even routing forced
            and (best is None or rate > best[0])
        ):
            best = (rate, trial)
    return best[1] if best else None


def split_layers(spec: Spec) -> Spec:
    """Split layers that do not divide, where ``layout.split_unevenly`` allows it.

    The embedding and the loss are counted as layers if that makes the stages even; otherwise the last stage is shorter.
    """
    layout, layers = spec.layout, spec.model.num_layers
    chosen = layout.account_for_embedding or layout.account_for_loss
    chosen = chosen or bool(layout.num_layers_in_first_pipeline_stage or layout.num_layers_in_last_pipeline_stage)
    if not layout.split_unevenly or chosen or layers % (layout.pp * layout.vpp) == 0:
        return spec
    if (layers + 2) % (layout.pp * layout.vpp) == 0:
        return replace(spec, layout=replace(layout, account_for_embedding=True, account_for_loss=True))
    each = -(-layers // layout.pp)
    last = layers - each * (layout.pp - 1)
    if last > 0 and each % layout.vpp == 0 and last % layout.vpp == 0:
        return replace(spec, layout=replace(layout, num_layers_in_last_pipeline_stage=last))
    return spec


def choose_layout(resolved: Resolved) -> tuple[Spec, str]:
    """The resolved recipe with a layout, NVIDIA's levers and its save interval, and who chose the layout.

    Where a parallel size is given, the layout is the given one, with the other parallel sizes at their defaults. Else
    a published or searched layout completes what is pinned.

    Raises:
        Refusal: no legal layout with what is pinned fits.
    """
    spec, chosen_by = _with_layout(resolved)
    return with_save_interval(spec, resolved.untouched), chosen_by


def _with_layout(resolved: Resolved) -> tuple[Spec, str]:
    spec, untouched = resolved.spec, resolved.untouched
    if resolved.layout_given:
        return with_nvidia_levers(split_layers(spec), untouched), "given"
    published = published_layout(spec, resolved.pinned)
    if published is not None:
        return with_nvidia_levers(published, untouched), f"published: {published.layout.source}"
    candidates = plan_pinned(spec, resolved.pinned, _TRIED, untouched).candidates
    if all(candidate.p_fits < LIKELY for candidate in candidates):
        candidates = plan_pinned(spec, resolved.pinned, _NEAREST_OF, untouched).candidates
    best = preferred(candidates)
    return best.spec, _why(best, candidates[0])


TIE = 1.03
"""Two layouts whose predictions are this close are a tie. Of published pairs whose predictions differ by up to 3 %, the
one that is predicted to be faster was so in 55 %; of those between 3 and 5 %, in 67 %
(python -m benchmarks.accuracy TRUTH/throughput.csv --order)."""
_TRIED = 12  # fastest layouts among which ties are looked for


def tie_groups(candidates: list[Candidate]) -> list[list[Candidate]]:
    """The candidates, fastest first, in groups of those that tie with the fastest of their group.

    Within a group, those that are likely to fit come first, then published ones, then simpler, then smaller ones.
    """
    groups: list[list[Candidate]] = []
    for candidate in sorted(candidates, key=lambda each: each.time.step_time_s):
        if not groups or candidate.time.step_time_s > TIE * groups[-1][0].time.step_time_s:
            groups.append([])
        groups[-1].append(candidate)
    return [sorted(group, key=lambda each: (each.p_fits < LIKELY, *_preference(each))) for group in groups]


def preferred(candidates: list[Candidate]) -> Candidate:
    """Of the layouts that tie with the fastest that is likely to fit, the one to start with.

    It has been published for a model of this shape; then it is the simplest; then the smallest in memory. Where none of
    them is likely to fit, it is the one that is likeliest to.
    """
    likely = [c for c in candidates if c.p_fits >= LIKELY]
    if not likely:
        return max(candidates, key=lambda candidate: candidate.p_fits)
    return tie_groups(likely)[0][0]


def _why(chosen: Candidate, fastest: Candidate) -> str:
    """Why the planner chose this layout, in the words of ``check``."""
    if chosen is fastest:
        return "the planner's fastest that fits"
    slower = (
        f"the planner's choice: {chosen.time.step_time_s / fastest.time.step_time_s - 1:.1%} slower than the fastest"
    )
    if fastest.p_fits < min(LIKELY, chosen.p_fits):
        return f"{slower}, and more likely to fit"
    differs = [a != b for a, b in zip(_preference(chosen), _preference(fastest), strict=True)]
    return f"{slower}, and {('published', 'simpler', 'simpler', 'simpler', 'smaller')[differs.index(True)]}"


def _preference(candidate: Candidate) -> tuple[bool, int, int, int, float]:
    layout = candidate.layout
    techniques = sum(getattr(layout, name) > 1 for name in PARALLEL) + (layout.recompute is not Recompute.none)
    short = layout.cp if candidate.spec.seq_length < SHORT_SEQUENCE else 1  # context ranks that a sequence hardly needs
    return not _is_published(candidate.spec), techniques, short, layout.vpp, candidate.memory.needed_gib


def _is_published(spec: Spec) -> bool:
    """Whether a published run of a model of this shape, on this GPU and in this precision, has these sizes."""
    sizes = {name: str(getattr(spec.layout, name)) for name in _PUBLISHED_SIZES}
    return any(
        (row["gpu"], row["precision"]) == (spec.gpu.name, spec.precision.name)
        and all(row[name] == size for name, size in sizes.items())
        and _shape(configs.model(row["model"])) == _shape(spec.model)
        for row in _comparable(spec)
    )


_PUBLISHED_SIZES = ("tp", "pp", "vpp", "cp", "ep", "mbs")


def _shape(model: Model) -> tuple[int, ...]:
    return (
        model.num_layers,
        model.hidden_size,
        model.ffn_hidden_size,
        model.num_attention_heads,
        model.num_query_groups,
        model.num_moe_experts,
    )


def complete(resolved: Resolved) -> Spec:
    """The resolved recipe with a layout."""
    return choose_layout(resolved)[0]


_NEAREST_OF = 64  # fastest layouts among which the nearest is looked for
_FSDP_DISTANCE = 2  # switching FSDP changes as much as two doublings of a size


def nearest_good(spec: Spec, pinned: frozenset[str] = frozenset()) -> Candidate | None:
    """The legal layout that fits and differs least from the one of ``spec``; of several, the fastest.

    A doubling of one size counts 1, another recompute 1, FSDP 2. It keeps the fields ``pinned``; where none that keeps
    them all fits, all but one of them; else none of them. None where no legal layout fits.
    """
    candidates = _keeping(spec, pinned)

    def distance(candidate: Candidate) -> tuple[float, float]:
        given, found = spec.layout, candidate.layout
        names = [name for name in (*PARALLEL, "mbs") if name != "etp"]  # 0 follows TP
        doublings = sum(abs(math.log2(getattr(given, name) / getattr(found, name))) for name in names)
        switched = (given.recompute is not found.recompute) + _FSDP_DISTANCE * (given.fsdp is not found.fsdp)
        return doublings + switched, candidate.time.step_time_s

    return min(candidates, key=distance, default=None)


def _keeping(spec: Spec, pinned: frozenset[str]) -> list[Candidate]:
    """The fastest layouts that keep as many pins as any does."""
    searched = [name for name in SEARCHED if name in pinned]
    if kept := _fitting(spec, pinned):
        return kept
    if fewer := [found for name in searched for found in _fitting(spec, pinned - {name})]:
        return fewer
    return _fitting(spec, pinned - set(searched))


def _fitting(spec: Spec, pinned: frozenset[str]) -> list[Candidate]:
    try:
        return plan(spec, top=_NEAREST_OF, pinned=pinned).candidates
    except Refusal:
        return []
