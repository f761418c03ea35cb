"""A run that ran out of GPU memory beside what the planner predicts, and the cheapest change that frees enough."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slipway import planner
from slipway.configs import Spec
from slipway.launch.diagnosis.allocator import Allocation, allocation_in
from slipway.launch.diagnosis.configured import Configured, configured_by_log, configured_by_record
from slipway.launch.diagnosis.diagnose import Diagnosis
from slipway.launch.foreign.reading import SameTerms
from slipway.planner.ladder import Rung, ladder

OUT_OF_GPU_MEMORY = "gpu-memory"  # the class of configs/failures.yaml
MARGIN_GIB = 1.0  # freed beyond what was missing, so that the next run does not fail by a few MiB


@dataclass(frozen=True)
class MemoryVerdict:
    """What was missing, what was predicted, and what frees enough. All in GiB; None where there is no prediction.

    Attributes:
        stage: of the pipeline, to which the rank that failed belongs.
        predicted_peak: the allocator's, of that stage.
        predicted_stages: the allocator's peak of every stage.
        missing: what has to be freed: what the allocator lacked, or what the prediction exceeds the GPU by.
        rung: the cheapest single change that frees it, without more GPUs; None where no single change does.
        changes: that change, in the terms of the run's own file.
    """

    allocation: Allocation
    missing: float
    stage: int | None = None
    predicted_peak: float | None = None
    predicted_needed: float | None = None
    predicted_stages: tuple[float, ...] = ()
    rung: Rung | None = None
    changes: tuple[str, ...] = ()
    fits: bool | None = None


def judge_memory(allocation: Allocation, run: Configured | None, rank: int | None) -> MemoryVerdict:
    """Compare a failed request with the prediction for its run, if that is known."""
    if run is None:
        return MemoryVerdict(allocation, allocation.missing)
    verdict = planner.check(run.spec, run.framework, dropout=run.dropout, lifted=run.lifted)
    memory = verdict.memory
    if memory is None:
        return MemoryVerdict(allocation, allocation.missing)
    missing = max(allocation.missing, -memory.headroom_gib)
    rung = _cheapest(run.spec, missing + MARGIN_GIB)
    stage = stage_of(rank, run.spec)
    changes: tuple[str, ...] = ()
    if rung is not None and rung.candidate is not None:
        terms = run.terms or SameTerms()
        own = terms.changes(run.spec.layout, rung.candidate.layout)
        changes = tuple(own or [terms.say(change) for change in rung.overrides])
    return MemoryVerdict(
        allocation=allocation,
        missing=missing,
        stage=stage,
        predicted_peak=memory.stages[stage].total_gib if stage is not None else memory.peak_gib,
        predicted_needed=memory.needed_gib,
        predicted_stages=tuple(one.total_gib for one in memory.stages),
        rung=rung,
        changes=changes,
        fits=memory.fits,
    )


def _cheapest(spec: Spec, gib: float) -> Rung | None:
    """The change that frees at least ``gib`` and makes tokens least dearer, without a risk if any has none."""
    found = [
        rung
        for rung in ladder(spec)
        if rung.candidate is not None and rung.candidate.spec.gpus == spec.gpus and rung.frees_gib >= gib
    ]
    return min(found, key=lambda rung: (bool(rung.risk), rung.slower), default=None)


def memory_of(found: Diagnosis, run: Path | None) -> MemoryVerdict | None:
    """What a run that ran out of GPU memory lacked; None for a run that failed otherwise, or whose logs do not say.

    Args:
        run: the folder whose record describes the run; None: its logs may, as Megatron-LM's do.
    """
    if found.cause is None or found.known is None or found.known.name != OUT_OF_GPU_MEMORY:
        return None
    lines = [found.cause, *found.evidence, *(s for scan in found.scans for s in scan.sightings)]
    asked = ((allocation_in(line.text), line.rank) for line in lines if line.known.name == OUT_OF_GPU_MEMORY)
    allocation, rank = next(((one, rank) for one, rank in asked if one), (None, None))
    if allocation is None:
        return None
    configured = configured_by_record(run) if run else None
    logs = (configured_by_log(scan.path, allocation.capacity) for scan in found.scans)
    configured = configured or next((one for one in logs if one), None)
    return judge_memory(allocation, configured, found.rank if found.rank is not None else rank)


def stage_of(rank: int | None, spec: Spec) -> int | None:
    """The pipeline stage of a global rank: the pipeline is Megatron-Core's outermost dimension."""
    if rank is None or not 0 <= rank < spec.gpus:
        return None
    return rank // (spec.gpus // spec.layout.pp)
