"""A global batch that grows during training: Megatron-Core's micro-batch calculator and NeMo's sampler for it.

Upstream's ramp (``rampup_batch_size``) has one increment; stops the run wherever the batch changes, so that each batch
is a job of its own; and counts the samples of one step late until it is resumed, so that a resumed run changes its
batch at another step than an uninterrupted one. Here the batch is a function of the samples consumed, and training
goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from megatron.core import num_microbatches_calculator as calculators
from nemo.lightning.megatron_parallel import MegatronStep
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from nemo.utils import AppState

from slipway.configs.schedule import Batches


class RampCalculator(calculators.NumMicroBatchesCalculator):
    """The number of micro-batches of a batch that is a function of the samples consumed."""

    def __init__(self, batches: Batches, micro_batch_size: int, data_parallel_size: int) -> None:
        super().__init__()
        self.batches = batches
        self.micro_batch_size = micro_batch_size
        self.unit = micro_batch_size * data_parallel_size
        self.update(0, consistency_check=True)

    def update(self, consumed_samples: int, consistency_check: bool, verbose: bool = False) -> None:
        """Take the batch of the step that starts after ``consumed_samples``.

        Raises:
            ValueError: the batch is not a multiple of micro-batch x data-parallel ranks.
        """
        gbs = self.batches.of_samples(int(consumed_samples))
        if gbs % self.unit:
            raise ValueError(f"a batch of {gbs} sequences is not a multiple of {self.unit}")
        self.current_global_batch_size = self.current_running_global_batch_size = gbs
        self.num_micro_batches = gbs // self.unit

    @property
    def largest(self) -> int:
        """The micro-batches of the full batch, with which validation runs."""
        return self.batches.gbs // self.unit


class RampSampler(MegatronDataSampler):
    """NeMo's sampler with a batch that grows.

    Args:
        batch_ramp: the smaller batches, as in ``optim.batch_ramp``.
        options: of :class:`MegatronDataSampler`.
    """

    def __init__(self, *, batch_ramp: list[str], **options: Any) -> None:
        super().__init__(**options)
        self.batches = Batches(tuple(batch_ramp), self.global_batch_size, self.seq_len)
        self.consumed_since_start = 0

    def setup(self, global_rank: int) -> None:
        calculators.unset_num_microbatches_calculator()
        self.calculator = RampCalculator(self.batches, self.micro_batch_size, AppState().data_parallel_size)
        calculators._GLOBAL_NUM_MICROBATCHES_CALCULATOR = self.calculator

    def compute_consumed_samples(self, steps_since_resume: int = 0) -> int:
        """Samples consumed since the start of training, whatever the number of steps."""
        return int(self.init_consumed_samples) + self.consumed_since_start

    def on_megatron_step_start(self, step: MegatronStep) -> MegatronStep:
        step = super().on_megatron_step_start(step)
        return step if _trains(step) else dataclasses.replace(step, num_microbatches=self.calculator.largest)

    def on_megatron_microbatches_start(self, step: MegatronStep) -> None:
        """Continue training: upstream stops the run here wherever the batch changes."""

    def on_megatron_step_end(self, step: MegatronStep) -> None:
        if not _trains(step):
            return
        gbs = self.calculator.current_global_batch_size
        self.consumed_since_start += gbs
        consumed = self.compute_consumed_samples()
        if self.output_log:
            step.pl_module.log("consumed_samples", float(consumed), prog_bar=True, batch_size=1)
            step.pl_module.log("global_batch_size", float(gbs), prog_bar=True, batch_size=1)
        self.calculator.update(consumed, consistency_check=True)


def _trains(step: MegatronStep) -> bool:
    return bool(step.trainer and getattr(step.trainer, "training", False))


def batches_of_sampler(sampler: MegatronDataSampler) -> Batches:
    """The batch over a run, as its data sampler has it."""
    if isinstance(sampler, RampSampler):
        return sampler.batches
    return Batches((), sampler.global_batch_size, sampler.seq_len)


def as_lines(ramp: list[Any] | None, seq_length: int) -> list[str]:
    """A ramp as lines of ``optim.batch_ramp``, from such lines or from NeMo's [first batch, increment, samples]."""
    if ramp and isinstance(ramp[0], int):
        first, increment, samples = ramp
        return [f"{first} by {increment} until {samples * seq_length} tokens"]
    return list(ramp or [])


class Ramping:
    """A data module of NeMo whose ``rampup_batch_size`` holds lines of ``optim.batch_ramp``.

    NeMo's own form, [first batch, increment, samples], becomes such a line.
    """

    _data_sampler: MegatronDataSampler

    @property
    def data_sampler(self) -> MegatronDataSampler:
        """The sampler that NeMo's constructor makes, with a batch that grows where the run says so."""
        return self._data_sampler

    @data_sampler.setter
    def data_sampler(self, made: MegatronDataSampler) -> None:
        ramp = as_lines(made.rampup_batch_size, made.seq_len)
        self._data_sampler = _with_ramp(made, ramp) if ramp else made

    def reconfigure_limit_batches(self) -> None:
        """Count validation in full batches: a validation step takes one, however small the batch of training is."""
        with _full_batch(self.data_sampler):
            super().reconfigure_limit_batches()  # type: ignore[misc]


def _with_ramp(sampler: MegatronDataSampler, ramp: list[str]) -> RampSampler:
    return RampSampler(
        batch_ramp=ramp,
        seq_len=sampler.seq_len,
        micro_batch_size=sampler.micro_batch_size,
        global_batch_size=sampler.global_batch_size,
        dataloader_type=sampler.dataloader_type,
        init_consumed_samples=sampler.init_consumed_samples,
        init_global_step=sampler.init_global_step,
        output_log=sampler.output_log,
    )


@contextlib.contextmanager
def _full_batch(sampler: MegatronDataSampler) -> Iterator[None]:
    if not isinstance(sampler, RampSampler):
        yield
        return
    calculator = sampler.calculator
    now, calculator.num_micro_batches = calculator.num_micro_batches, calculator.largest
    yield
    calculator.num_micro_batches = now
