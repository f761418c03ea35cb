"""Validation sets by name: after NeMo's own validation, each is read and its loss logged as ``val_loss/NAME``.

Lightning's several loaders are not used: with NeMo's iterators it logs the first batch of a set under the one before.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core import parallel_state
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.num_microbatches_calculator import get_num_microbatches
from nemo.lightning.io.mixin import IOMixin


class NamedValidation(pl.Callback, IOMixin):
    """Evaluates further sets in every validation, each on ``limit_val_batches`` batches that are always the same.

    Args:
        sets: a .bin/.idx prefix by its name.
    """

    def __init__(self, sets: dict[str, str]) -> None:
        self.sets = sets
        self.datasets: dict[str, Any] = {}
        self.loaders: dict[str, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        samples = int(trainer.limit_val_batches * data.data_sampler.global_batch_size)
        self.datasets = {name: _dataset(data, prefix, samples) for name, prefix in self.sets.items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        for name, dataset in self.datasets.items():  # not in setup: the strategy does not have its sampler yet
            loader = data._create_dataloader(dataset, mode="validation")
            self.loaders[name] = trainer.strategy.process_dataloader(loader)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, loader in self.loaders.items():
            pl_module.log(f"val_loss/{name}", _loss(trainer.strategy, loader), batch_size=1)


def _dataset(data: Any, prefix: str, samples: int) -> Any:
    """``samples`` of a set, cut as NeMo's data module ``data`` cuts its own."""
    own = data.build_kwargs
    data.build_kwargs = {"mmap_bin_files": own["mmap_bin_files"], "blend_per_split": [None, ([prefix], None), None]}
    try:
        config = data.gpt_dataset_config
    finally:
        data.build_kwargs = own
    return BlendedMegatronDatasetBuilder(data.dataset_cls, [0, samples, 0], lambda: True, config).build()[1]


def _loss(strategy: Any, loader: Any) -> torch.Tensor:
    """The mean loss of a set, the same on every rank: 0-dimensional, in nats per token."""
    batches, losses = iter(loader), []
    for _ in range(len(loader) // get_num_microbatches()):
        with strategy.precision_plugin.val_step_context():
            losses.append(torch.as_tensor(strategy.model.validation_step(batches)).detach().float())
    loss = torch.stack(losses).mean()
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:  # stages before the last have 0
        torch.distributed.all_reduce(loss, group=parallel_state.get_pipeline_model_parallel_group())
    return loss
