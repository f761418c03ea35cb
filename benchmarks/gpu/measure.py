"""Measure one configuration in a process of its own, and print it as one line of JSON.

python -m benchmarks.gpu.measure '{"who": "slipway", "overrides": ["precision=fp8_current", "model.num_layers=4"]}'
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import configs
import planner
from configs import Spec

WARM_UP, STEPS = 4, 10


@dataclass(frozen=True)
class Case:
    """Who trains what: ``slipway`` or one of the peers, a recipe's overrides, on the GPU or, at toy size, on the CPU."""

    who: str
    recipe: str = "llama3_8b"
    overrides: list[str] = field(default_factory=list)
    cpu: bool = False
    steps: int = STEPS
    warm_up: int = WARM_UP
    profile: str = ""  # write a torch profiler trace of one step here

    @property
    def spec(self) -> Spec:
        return planner.complete(configs.load(self.recipe, self.overrides))


@dataclass(frozen=True)
class Row:
    """What was measured: seconds a step (median and 90th percentile), GiB by torch's counters, nats per token."""

    who: str
    case: dict[str, Any]
    step_time_s: float
    step_time_p90_s: float
    tokens_per_s: float
    model_tflops: float
    mfu: float | None
    peak_gib: float | None
    losses: list[float]
    device: str
    versions: dict[str, str]


def slipway(case: Case) -> tuple[list[float], list[float]]:
    """(seconds, loss) of each step of our recipe, through NeMo's own loop, without checkpoints and logs."""
    import fiddle as fdl
    import lightning.pytorch as pl
    import torch

    from recipes.builder import build

    if case.cpu:
        from recipes.cpu import emulation

        emulation.enter()
    times: list[float] = []
    losses: list[float] = []

    class Clock(pl.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.start = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - self.start)
            losses.append(float(trainer.callback_metrics["reduced_train_loss"]))

    with tempfile.TemporaryDirectory() as folder:
        spec = replace(case.spec, run=replace(case.spec.run, dir=folder, max_steps=case.steps + case.warm_up, async_save=False))
        recipe = build(spec, cpu=case.cpu)
        recipe.trainer.callbacks = []
        recipe.trainer.enable_checkpointing = False
        recipe.trainer.enable_progress_bar = False
        recipe.trainer.logger = False
        recipe.log.ckpt = recipe.log.tensorboard = recipe.resume = None
        built = fdl.build(recipe)
        built.keywords["trainer"].callbacks.append(Clock())
        built()
    return times, losses


def peer(case: Case) -> tuple[list[float], list[float]]:
    """(seconds, loss) of each step of a peer on the same shapes, on random tokens."""
    import torch

    from benchmarks.gpu.peers import build

    spec = case.spec
    device = "cpu" if case.cpu else "cuda"
    step = build(case.who, spec.model, device, compiled=not case.cpu)
    times, losses = [], []
    shape = (spec.layout.mbs, spec.seq_length + 1)
    for _ in range(case.steps + case.warm_up):
        drawn = [torch.randint(spec.model.vocab_size, shape, device=device) for _ in range(spec.batch.num_micro_batches)]
        batches = [(d[:, :-1].contiguous(), d[:, 1:].contiguous()) for d in drawn]
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        loss = step.run(batches)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        losses.append(loss)
    return times, losses


def measure(case: Case) -> Row:
    """Run one case here and now."""
    import torch

    from recipes.source import source

    if not case.cpu and not torch.cuda.is_available():
        raise configs.Refusal("there is no GPU here", "Prove the scripts with: python -m benchmarks.gpu --cpu")
    work = slipway if case.who == "slipway" else peer
    if case.profile:
        with torch.profiler.profile(record_shapes=True) as profile:
            times, losses = work(replace(case, steps=1))
        profile.export_chrome_trace(case.profile)
        print(profile.key_averages().table(sort_by="self_cuda_time_total" if not case.cpu else "self_cpu_time_total", row_limit=20))
    else:
        times, losses = work(case)
    settled = times[case.warm_up :]
    spec, median = case.spec, statistics.median(settled)
    rate = spec.batch.tokens / median / spec.gpus
    tflops = rate * planner.model_flops_per_token(spec) / 1e12
    return Row(
        who=case.who,
        case=asdict(case),
        step_time_s=median,
        step_time_p90_s=sorted(settled)[int(0.9 * (len(settled) - 1))],
        tokens_per_s=rate,
        model_tflops=tflops,
        mfu=None if case.cpu else tflops / planner.peak_tflops(spec),
        peak_gib=None if case.cpu else torch.cuda.max_memory_allocated() / 2**30,
        losses=losses,
        device="CPU" if case.cpu else torch.cuda.get_device_name(),
        versions=source()["versions"],
    )


if __name__ == "__main__":
    print("\nROW " + json.dumps(asdict(measure(Case(**json.loads(sys.argv[1]))))), flush=True)
