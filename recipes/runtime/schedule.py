"""The learning rate of a recipe's stages, and the constants of its loss that change, as Lightning runs them.

What is computed is :mod:`slipway.configs.schedule`. Megatron-Core's OptimizerParamScheduler has one decay, knows only
one unit, and takes the schedule of the checkpoint without a word; NeMo's schedulers count steps only. Therefore all
stages run in one scheduler of ours; tests compare it with Megatron-Core's wherever that can express the schedule.
"""

# Without postponed annotations: NeMo-Run's command line reads the types of the constructors' arguments.
import logging
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
from nemo.lightning.pytorch.optim import LRSchedulerModule
from torch.optim.lr_scheduler import LRScheduler

from slipway.configs import Refusal
from slipway.configs.schedule import LearningRate, LossConstants
from slipway.recipes.runtime.batch import batches_of_sampler

_log = logging.getLogger(__name__)


class StagedRate(LRScheduler):
    """Sets the learning rate of a position in the run: the steps done, and the tokens that they took.

    Its state is the position and the lines of its schedule. The recipe decides how long the schedule is, never the
    checkpoint: either the recipe's new schedule counts (``extend``), or the run stops and says what to do.
    """

    def __init__(self, optimizer: Any, rate: LearningRate, extend: bool) -> None:
        self.rate = rate
        self.extend = extend
        self.tokens = 0
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Move to the position after one more step."""
        if self.last_epoch >= 0:  # torch's constructor calls this once, before any step
            batches = self.rate.batches
            self.tokens += batches.of_tokens(self.tokens) * batches.seq_length
        super().step()

    def get_lr(self) -> list[float]:
        """The learning rate of each parameter group; its peak is the one that the optimizer was made with."""
        return [self.rate.at(self.last_epoch, self.tokens, float(peak)) for peak in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The position and the schedule, as plain data."""
        return {
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "_last_lr": list(self._last_lr),
            "tokens": self.tokens,
            "schedule": self._lines(),
        }

    def _lines(self) -> list[str]:
        return [f"warmup {self.rate.warmup}", *self.rate.stages]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a stored position.

        Raises:
            Refusal: the stored schedule is not the recipe's, and nobody asked to extend it.
        """
        stored, ours = _stored_lines(state_dict), self._lines()
        if not _same(stored, ours):
            if not self.extend:
                raise Refusal(
                    "the checkpoint's learning-rate schedule is not the recipe's "
                    f"({'; '.join(stored)} -> {'; '.join(ours)})",
                    "Set run.extend_schedule=true to train on with the recipe's, or give the old values of optim.",
                )
            _log.warning("learning-rate schedule changed on resume: %s -> %s", stored, ours)
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["_step_count"]
        self._last_lr = list(state_dict["_last_lr"])
        self.tokens = state_dict.get("tokens", self.rate.batches.tokens_at(self.last_epoch))
        for group, value in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = value


def _stored_lines(state: dict[str, Any]) -> list[str]:
    """The lines of a stored schedule; checkpoints of earlier versions hold NeMo's cosine."""
    if "schedule" in state:
        return list(state["schedule"])
    warmup, steps = state.get("warmup_steps") or 0, state.get("max_steps")
    cosine = f"cosine until {steps} steps to {state.get('min_lr')!r}"
    return [f"warmup {warmup} steps" if warmup else "warmup ", cosine]


def _same(stored: list[str], ours: list[str]) -> bool:
    return [line.split() for line in stored] == [line.split() for line in ours]


class StagedSchedule(LRSchedulerModule):
    """The schedule of a recipe. It takes the tokens of a step from the run's data sampler.

    Args:
        stages: what follows the warm-up, one line a stage, as in ``optim.stages``. Their ends do not come from
            ``trainer.max_steps``, which would tie the schedule to how long one job happens to run.
        warmup: the end of the linear warm-up, as ``8000 steps`` or ``375M tokens``; empty: none.
        extend: on resume, take this schedule in place of a stored one that differs, instead of refusing.
    """

    def __init__(self, stages: list[str], warmup: str = "", extend: bool = False) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.warmup = warmup
        self.extend = extend

    def scheduler(self, model: Any, optimizer: Any) -> dict[str, Any]:
        rate = LearningRate(self.warmup, self.stages, batches_of_sampler(model.trainer.strategy.data_sampler))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": StagedRate(optimizer, rate, self.extend), "interval": "step", "frequency": 1},
            "monitor": "val_loss",
        }


class ChangingLoss(pl.Callback):
    """Sets the constants of the loss that change at given tokens, from the position of the learning rate.

    Megatron-Core reads them from the models' configurations in every step: the weight of multi-token prediction in
    GPTModel.forward, the update rate of the routers' bias in finalize_model_grads. They need no state of their own,
    because the position is restored with the scheduler.
    """

    def __init__(self, changes: list[str]) -> None:
        self.changes = list(changes)
        self.constants = LossConstants(tuple(changes))
        self.now: dict[str, float] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        scheduler = trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(scheduler, StagedRate)
        wanted = {str(name): value for name, value in self._at(scheduler).items()}
        if wanted == self.now:
            return
        for config in _configs(trainer.strategy.megatron_parallel):  # type: ignore[attr-defined]
            for name, value in wanted.items():
                setattr(config, name, value)
        _log.warning("constants of the loss from step %d on: %s", trainer.global_step, wanted)
        self.now = wanted

    def _at(self, scheduler: StagedRate) -> dict[Any, float]:
        return self.constants.at(scheduler.last_epoch, scheduler.tokens)


def _configs(chunks: Iterable[Any]) -> list[Any]:
    """The configurations of the model's chunks and of every module in them, each once."""
    found = {}
    for chunk in chunks:
        for module in chunk.modules():
            config = getattr(module, "config", None)
            if hasattr(config, "moe_router_bias_update_rate"):
                found[id(config)] = config
    return list(found.values())
