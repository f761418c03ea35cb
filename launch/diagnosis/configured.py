"""What run a log or a folder is of: the recipe that a run recorded, or the arguments that Megatron-LM's log prints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from slipway import configs, planner
from slipway.configs import Refusal, Spec
from slipway.configs.load import recorded
from slipway.launch import foreign
from slipway.launch.foreign.kinds import training_log
from slipway.launch.foreign.reading import Terms, open_file
from slipway.recipes.runtime.run_files import RECORD

SAME_GPU = 0.05  # relative difference of two capacities that are of one GPU: ECC and the driver take a little


@dataclass(frozen=True)
class Configured:
    """The run that a log is of, as its record or the log itself describes it.

    Attributes:
        framework, dropout, lifted: how it is judged, as in :func:`slipway.planner.check`.
        terms: the words of its file for a change of the layout; None for a run of ours.
    """

    spec: Spec
    framework: planner.Framework = planner.Framework.nemo
    dropout: bool = False
    lifted: frozenset[str] = frozenset()
    terms: Terms | None = None


def configured_by_record(run: Path) -> Configured | None:
    """The run that a folder's record describes, on the GPU that it ran on; None where it does not say."""
    try:
        spec, stored = recorded(run / RECORD)
    except Refusal:
        return None
    gpu = configs.gpu_of_device(str(stored.get("device_name") or ""))
    return Configured(replace(spec, gpu=gpu) if gpu else spec)


def configured_by_log(path: Path, capacity_gib: float | None = None) -> Configured | None:
    """The run whose arguments a log of Megatron-LM prints, on the GPU with ``capacity_gib``; None for another log."""
    try:
        file = open_file(path)
        if not training_log.recognizes(file):
            return None
        gpu = gpu_with(capacity_gib) if capacity_gib else ""
        reading = training_log.read(file, foreign.Request((f"gpu={gpu}",) if gpu else ()))
        spec = reading.resolved.spec
        if not reading.resolved.layout_given:
            spec, _ = planner.choose_layout(reading.resolved)
    except Refusal:
        return None
    return Configured(spec, planner.Framework.megatron_lm, reading.dropout, reading.lifted, reading.terms)


def gpu_with(gib: float) -> str:
    """The GPU of configs/gpu whose memory is nearest to ``gib``; empty where none is near."""
    gpus = [configs.gpu(name) for name in configs.gpu_names()]
    near = min(gpus, key=lambda gpu: abs(gpu.usable_memory_gib / gib - 1))
    return near.name if abs(near.usable_memory_gib / gib - 1) <= SAME_GPU else ""
