"""Measure one case in a process of its own, and print it as one line of JSON after the word ROW.

    python -m benchmarks.gpu.measure '{"who": "slipway", "overrides": ["precision=fp8_current", "model.num_layers=4"]}'

With --wait it imports everything first, and measures after a line on its standard input.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from slipway import configs, planner
from slipway.configs import Spec

WARM_UP, STEPS = 3, 6  # compilation and autotuning fall in the first steps; a median of six tolerates two slow ones
ROW = "ROW "  # before the line that benchmarks.gpu reads


@dataclass(frozen=True)
class Case:
    """Who trains what: ``slipway`` or a peer, a recipe's overrides, on the GPU or, at toy size, on the CPU."""

    who: str
    recipe: str = "llama3_8b"
    overrides: list[str] = field(default_factory=list)
    cpu: bool = False
    steps: int = STEPS
    warm_up: int = WARM_UP
    profile: bool = False  # one more step, under the profiler

    @property
    def spec(self) -> Spec:
        return planner.complete(configs.load(self.recipe, self.overrides))

    @property
    def steps_in_all(self) -> int:
        return self.warm_up + self.steps + self.profile


@dataclass(frozen=True)
class Row:
    """What was measured: seconds per step (median and 90th percentile), GiB by torch's counters, nats per token.

    ``breakdown`` is the seconds of the profiled step by kind of kernel, ``slowest`` its longest kernels.
    """

    who: str
    case: dict[str, Any]
    step_time_s: float
    step_time_p90_s: float
    tokens_per_s: float
    model_tflops: float
    mfu: float | None
    peak_gib: float | None
    losses: list[float]
    breakdown: dict[str, float]
    slowest: list[tuple[str, str, float]]
    device: str
    versions: dict[str, str]


class Meter:
    """Times each step with the device idle before and after, and profiles the last one if the case asks for it."""

    def __init__(self, case: Case) -> None:
        import torch

        self.case = case
        self.times: list[float] = []
        self.losses: list[float] = []
        self.profiler: torch.profiler.profile | None = None
        self.profiled_s = 0.0
        self._wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    def start(self) -> None:
        import torch

        if self.case.profile and len(self.times) == self.case.warm_up + self.case.steps:
            self.profiler = torch.profiler.profile()
            self.profiler.start()
        self._wait()
        self._began = time.perf_counter()

    def end(self, loss: float) -> None:
        self._wait()
        seconds = time.perf_counter() - self._began
        self.losses.append(loss)
        if self.profiler is None:
            self.times.append(seconds)
        else:
            self.profiled_s = seconds
            self.profiler.stop()


def slipway(case: Case, meter: Meter) -> None:
    """Train our recipe through NeMo's own loop, without checkpoints or logs."""
    import fiddle as fdl
    import lightning.pytorch as pl

    from slipway.recipes.build import build

    if case.cpu:
        from slipway.recipes.reference import emulation

        emulation.enter()

    class Clock(pl.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            meter.start()

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            meter.end(float(trainer.callback_metrics["reduced_train_loss"]))

    with tempfile.TemporaryDirectory() as folder:
        spec = replace(case.spec, run=replace(case.spec.run, dir=folder, max_steps=case.steps_in_all, async_save=False))
        recipe = build(spec, cpu=case.cpu)
        recipe.trainer.callbacks = []
        recipe.trainer.enable_checkpointing = False
        recipe.trainer.enable_progress_bar = False
        recipe.trainer.logger = False
        recipe.log.ckpt = recipe.log.tensorboard = recipe.resume = None
        built = fdl.build(recipe)
        built.keywords["trainer"].callbacks.append(Clock())
        built()


def peer(case: Case, meter: Meter) -> None:
    """Train a peer on the same shapes, on random tokens."""
    import torch

    from benchmarks.gpu.peers import build

    spec = case.spec
    device = "cpu" if case.cpu else "cuda"
    step = build(case.who, spec.model, device, compiled=not case.cpu)
    shape = (spec.layout.mbs, spec.seq_length + 1)
    for _ in range(case.steps_in_all):
        drawn = [
            torch.randint(spec.model.vocab_size, shape, device=device) for _ in range(spec.batch.num_micro_batches)
        ]
        batches = [(d[:, :-1].contiguous(), d[:, 1:].contiguous()) for d in drawn]
        meter.start()
        meter.end(step.run(batches))


def measure(case: Case) -> Row:
    """Run one case in this process.

    Raises:
        Refusal: the case needs a GPU and this machine has none.
    """
    import torch

    from benchmarks.gpu.breakdown import by_kind, longest
    from slipway.recipes.runtime.source import source

    if not case.cpu and not torch.cuda.is_available():
        raise configs.Refusal("this machine has no GPU", "Prove the scripts with: python -m benchmarks.gpu --cpu")
    meter = Meter(case)
    (slipway if case.who == "slipway" else peer)(case, meter)
    settled = meter.times[case.warm_up :]
    spec, median = case.spec, statistics.median(settled)
    rate = spec.batch.tokens / median / spec.gpus
    tflops = rate * planner.model_flops_per_token(spec) / 1e12
    return Row(
        who=case.who,
        case=asdict(case),
        step_time_s=median,
        step_time_p90_s=float(np.percentile(settled, 90)),
        tokens_per_s=rate,
        model_tflops=tflops,
        mfu=None if case.cpu else tflops / planner.peak_tflops(spec),
        peak_gib=None if case.cpu else torch.cuda.max_memory_allocated() / 2**30,
        losses=meter.losses,
        breakdown=by_kind(meter.profiler, meter.profiled_s) if meter.profiler else {},
        slowest=longest(meter.profiler) if meter.profiler else [],
        device="CPU" if case.cpu else torch.cuda.get_device_name(),
        versions=source()["versions"],
    )


def import_all(case: Case) -> None:
    """Import what the case needs, while another case is measured. Does not use the GPU."""
    import benchmarks.gpu.peers  # noqa: F401

    if case.who == "slipway":
        import slipway.recipes.build  # noqa: F401
    if case.who == "transformers":
        import transformers  # noqa: F401
    if case.who == "torch_float8":
        import torchao.float8  # noqa: F401


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", help="the fields of benchmarks.gpu.measure.Case as JSON")
    parser.add_argument("--wait", action="store_true", help="measure after a line on standard input")
    options = parser.parse_args()
    case = Case(**json.loads(options.case))
    if options.wait:
        import_all(case)
        sys.stdin.readline()
    print("\n" + ROW + json.dumps(asdict(measure(case))), flush=True)


if __name__ == "__main__":
    main()
