"""Write the folders of runs whose losses are known: real event files and a record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from slipway import configs
from slipway.configs import Spec
from slipway.configs.load import record_of
from slipway.launch.runs.series import LOSS, STEP_TIME
from slipway.recipes.runtime.run_files import PEAK_MEMORY, RECORD


def write_run(
    folder: Path,
    losses: np.ndarray,
    step_s: float | np.ndarray,
    spec: Spec,
    *,
    first: int = 0,
    world: int = 2,
    gpu: str = "",
    gib: float = 0.0,
) -> Path:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))
    times = np.broadcast_to(step_s, len(losses))
    for i, loss in enumerate(losses):
        writer.add_scalar(LOSS, loss, first + i)
        writer.add_scalar(STEP_TIME, times[i], first + i)
        if gib:
            writer.add_scalar(PEAK_MEMORY, gib, first + i)
    writer.close()
    record = folder / RECORD
    record.parent.mkdir(parents=True, exist_ok=True)
    device = {"device": "cuda:0", "device_name": gpu} if gpu else {"device": "cpu"}
    record.write_text(json.dumps({"spec": record_of(spec), "world_size": world, **device}))
    return folder


def curve(seed: int, steps: int = 400, shift: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.02, steps)
    return (2 + 6 * np.exp(-np.arange(steps) / 60) + noise) * (1 + shift)


def tiny() -> Spec:
    base = configs.load("llama3_tiny").spec
    return replace(base, run=replace(base.run, max_steps=400))
