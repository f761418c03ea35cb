"""Data modules and the null tokenizer: NeMo's own, with the faults that stop a recipe mended."""

from __future__ import annotations

from typing import Any

from nemo.collections.common.tokenizers.null_tokenizer import NullTokenizer as _NullTokenizer
from nemo.collections.llm.gpt.data.mock import MockDataModule, _MockGPTDataset
from nemo.collections.llm.gpt.data.pre_training import PreTrainingDataModule
from nemo.lightning.data import WrappedDataLoader
from nemo.lightning.io.mixin import IOMixin

from slipway.recipes.runtime.batch import Ramping

MOCK_SEED = 42


class NullTokenizer(_NullTokenizer, IOMixin):
    """A tokenizer of integers. As an IOMixin, so that virtual pipeline stages and the context dump keep it.

    Args:
        vocab_size: ids that data may hold; the padded embedding is the smallest legal size that holds them.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size - 1)  # upstream counts its end-of-document id on top


class MockData(Ramping, MockDataModule):
    """Random tokens, the same in every layout.

    Upstream passes the attention-mask flag where the seed belongs, and keeps no state: a resumed run would train on its
    first samples again.
    """

    init_global_step = 0

    def train_dataloader(self) -> Any:
        self.init_global_step = self.data_sampler.init_global_step = self.trainer.global_step
        loader = super().train_dataloader()
        return WrappedDataLoader(
            mode="train",  # what tells the sampler to go on where the checkpoint stopped
            dataset=loader.dataset,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.persistent_workers,
            collate_fn=loader.dataset.collate_fn,
        )

    def state_dict(self) -> dict[str, Any]:
        steps = self.trainer.global_step - self.init_global_step
        return {"consumed_samples": self.data_sampler.compute_consumed_samples(steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        PreTrainingDataModule.load_state_dict(self, state_dict)

    def setup(self, stage: str = "") -> None:
        def dataset(name: str, samples: int, offset: int) -> Any:
            return _MockGPTDataset(
                self.tokenizer, name, samples, self.seq_length, MOCK_SEED + offset, self.create_attention_mask
            )

        self._train_ds = dataset("train", self.num_train_samples, 0)
        self._validation_ds = dataset("valid", self.num_val_samples, self.num_train_samples)
        self._test_ds = dataset("test", self.num_test_samples, self.num_train_samples + self.num_val_samples)


class IndexedData(Ramping, PreTrainingDataModule):
    """Megatron .bin/.idx prefixes, as ``slipway data prepare`` writes them."""
