"""Rehearse a recipe: train its toy with NeMo's own loop on CPU ranks, and compare with one process."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slipway.configs import Spec
from slipway.launch.rehearsal import ranks
from slipway.launch.rehearsal.shrink import shrink, single_process

RELATIVE_TOLERANCE = 1e-5  # of a loss; in fp32, layouts that are right differ by about 1e-7
STEPS = 5  # enough for every gradient to change the loss
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal measured.

    Attributes:
        losses: nats per token, the data-parallel mean of each step.
        reference_losses: the same of one process.
        seconds: of the whole rehearsal, without the import of NeMo.
        tie: the largest relative difference with the first weights, where a second draw was needed; else 0.
    """

    name: str
    toy: Spec
    losses: list[float]
    reference_losses: list[float]
    seconds: float
    tie: float = 0.0

    @property
    def max_abs_diff(self) -> float:
        return max(abs(a - b) for a, b in zip(self.losses, self.reference_losses, strict=True))

    @property
    def max_rel_diff(self) -> float:
        return max(abs(a - b) / abs(b) for a, b in zip(self.losses, self.reference_losses, strict=True))

    @property
    def agrees(self) -> bool:
        return self.max_rel_diff <= RELATIVE_TOLERANCE


@functools.cache
def import_nemo() -> None:
    """Import what every rank needs, once, in the process that will fork them."""
    ranks.quiet_environment()
    import megatron.core.dist_checkpointing  # noqa: F401
    import torch.distributed.checkpoint  # noqa: F401

    import slipway.recipes.build
    import slipway.recipes.reference.strategy

    assert slipway.recipes.build
    ranks.prepare_to_fork()


def seed_weights(chunks: list[Any], seed: int, std: float = 0.05) -> None:
    """Give every parameter the value that it has in any other layout.

    The whole tensor is drawn from a hash of its name, then sliced.
    The sharded state dict has the name of each tensor and the place of this rank's part in the whole.

    Args:
        chunks: the model chunks of this rank.
        std: standard deviation of the weights, larger than in training so that every weight matters within five steps.
    """
    import torch
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    # Norms that multiply by 1 + w are 1 where w is 0. Twice as strong, Gemma 3's toy is chaotic: rounding grows tenfold
    # a step.
    middle = 0 if chunks[0].config.layernorm_zero_centered_gamma else 1

    def draw(key: str, shape: tuple[int, ...]) -> torch.Tensor:
        digest = hashlib.md5(f"{seed} {key}".encode(), usedforsecurity=False).hexdigest()
        whole = torch.randn(shape, generator=torch.Generator().manual_seed(int(digest[:8], 16))) * std
        return middle + whole if "norm" in key and "weight" in key else whole

    def fill(state: Any) -> None:
        for item in list(nested_values(state)):
            if isinstance(item, ShardedTensorFactory):
                fill(item.build())
            elif isinstance(item, ShardedTensor) and item.data is not None and item.data.is_floating_point():
                if any(part in item.key for part in ("expert_bias", "_extra_state", "local_tokens")):
                    continue  # state of the training, not weights
                lengths = (1,) * item.prepend_axis_num + tuple(item.local_shape)
                where = tuple(slice(o, o + n) for o, n in zip(item.global_offset, lengths, strict=True))
                item.data.copy_(draw(item.key, item.global_shape)[where].reshape(item.local_shape))

    with torch.no_grad():
        for chunk in chunks:
            while not hasattr(chunk, "sharded_state_dict"):
                chunk = chunk.module
            fill(chunk.sharded_state_dict())


def seed_after_configure(seed: int) -> None:
    """Make NeMo seed the weights as soon as it has built them, before DDP or FSDP copies them into its buffers."""
    from nemo.collections.llm.gpt.model.base import GPTModel

    configure = GPTModel.configure_model

    def configure_and_seed(self: Any, vp_stage: int | None = None) -> Any:
        fresh = not hasattr(self, "module")
        result = configure(self, vp_stage=vp_stage)
        if fresh:
            seed_weights([self.module], seed)
        return result

    GPTModel.configure_model = configure_and_seed


def train_rank(spec: Spec, change: Callable[[Any], None] | None = None) -> Callable[[int], list[float]]:
    """The work of one rank: NeMo's ``llm.pretrain`` of ``spec``, which returns the loss of each step.

    Args:
        change: applied to the recipe before it is built; tests restore upstream's settings with it.
    """

    def work(rank: int) -> list[float]:
        import fiddle as fdl
        import lightning.pytorch as pl

        from slipway.recipes.build import build

        losses: list[float] = []

        class Losses(pl.Callback):
            def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
                losses.append(float(trainer.callback_metrics["reduced_train_loss"]))

        seed_after_configure(spec.run.seed)
        recipe = build(spec, cpu=True)
        recipe.trainer.callbacks = []
        recipe.trainer.enable_checkpointing = False
        recipe.trainer.enable_progress_bar = False
        recipe.trainer.logger = False  # Lightning would write a lightning_logs folder into the current one
        recipe.log.ckpt = None
        recipe.log.tensorboard = None
        recipe.resume = None
        if change:
            change(recipe)
        built = fdl.build(recipe)
        built.keywords["trainer"].callbacks.append(Losses())
        built()
        return losses

    return work


def _final_losses(outcome: ranks.Outcome) -> list[float]:
    """The losses of the last rank, which holds the last pipeline stage and computes them."""
    return [float(x) for x in outcome.results[-1]]


def run_toy(
    toy: Spec, *, change: Callable[[Any], None] | None = None, timeout_s: float = TIMEOUT_S
) -> tuple[list[float], float]:
    """Train ``toy`` on its ranks. Returns the loss of each step, and the seconds.

    Raises:
        RankFailure: a rank failed; the logs of all ranks are kept in a folder of /tmp.
    """
    import_nemo()
    folder = Path(tempfile.mkdtemp(prefix="slipway-rehearse-"))
    try:
        spec = replace(
            toy, run=replace(toy.run, dir=str(folder), max_steps=STEPS, async_save=False, val_check_interval=0)
        )
        outcome = ranks.run(spec.gpus, train_rank(spec, change), timeout_s=timeout_s, logs=folder / "logs")
        return _final_losses(outcome), outcome.seconds
    except ranks.RankFailure:
        kept = Path(tempfile.gettempdir()) / f"slipway-failed-{os.getpid()}-{int(time.time())}"
        shutil.copytree(folder / "logs", kept)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_reference_losses: dict[
    str, list[float]
] = {}  # by the Spec of the toy in one process: many layouts share one reference


def rehearse(spec: Spec, *, max_ranks: int = 8) -> Rehearsal:
    """Shrink ``spec``, train the toy on its ranks and in one process, and compare the losses step by step.

    Where a router gives two experts equal weight, rounding decides which of them gets the token, and from there the
    losses differ. A model with experts whose losses differ is therefore trained again with other weights: a layout that
    trains wrongly differs with any weights.
    """
    start = time.monotonic()
    toy = shrink(spec, max_ranks)
    first = _compared(spec.name, toy)
    if first.agrees or not toy.model.is_moe:
        return replace(first, seconds=time.monotonic() - start)
    again = _compared(spec.name, replace(toy, run=replace(toy.run, seed=toy.run.seed + 1)))
    chosen = replace(again, tie=first.max_rel_diff) if again.agrees else first
    return replace(chosen, seconds=time.monotonic() - start)


def _compared(name: str, toy: Spec) -> Rehearsal:
    reference = single_process(toy)
    key = repr(reference)
    if key not in _reference_losses:
        _reference_losses[key] = run_toy(reference)[0]
    losses, seconds = run_toy(toy)
    return Rehearsal(name, toy, losses, _reference_losses[key], seconds)
