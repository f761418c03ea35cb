"""Data modules and the null tokenizer: NeMo's own, with fixes for the defects that stop a recipe."""

# Without postponed annotations: NeMo-Run's command line reads the types of the constructors' arguments.
from typing import Any

import numpy as np
from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer
from nemo.collections.common.tokenizers.null_tokenizer import NullTokenizer as _NullTokenizer
from nemo.collections.llm.gpt.data.mock import MockDataModule, _MockGPTDataset
from nemo.collections.llm.gpt.data.pre_training import PreTrainingDataModule
from nemo.lightning.data import WrappedDataLoader
from nemo.lightning.io.mixin import IOMixin

from slipway.recipes.runtime.batch import Ramping


class NullTokenizer(_NullTokenizer, IOMixin):
    """A tokenizer of integers. As an IOMixin, so that virtual pipeline stages and the context dump keep it.

    Args:
        vocab_size: ids that data may hold; the padded embedding is the smallest legal size that holds them.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size - 1)  # upstream counts its end-of-document id on top


class Tokenizer(AutoTokenizer):
    """A tokenizer of Hugging Face, of a model that has ``rows`` embeddings.

    NeMo gives a model as many as its tokenizer has ids. Published models have more, and the weights of a base would be
    cut off without a word.
    """

    def __init__(self, pretrained_model_name: str, rows: int) -> None:
        super().__init__(pretrained_model_name)
        self.rows = rows

    @property
    def vocab_size(self) -> int:
        return self.rows


class Continuing(Ramping, MockDataModule):
    """NeMo's module of datasets that it makes itself, with a state: a resumed run continues where it stopped, and does
    not train on its first samples again.
    """

    init_global_step = 0

    def train_dataloader(self) -> Any:
        self.init_global_step = self.data_sampler.init_global_step = self.trainer.global_step
        loader = super().train_dataloader()
        return WrappedDataLoader(
            mode="train",  # the sampler then continues at the sample where the checkpoint stopped
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


class MockData(Continuing):
    """Random tokens, which depend on the seed and not on the layout.

    NeMo's module passes the attention-mask flag where the seed belongs.

    Args:
        seed: of the tokens; the other arguments are those of NeMo's module.
    """

    def __init__(
        self,
        seq_length: int = 2048,
        tokenizer: Any = None,
        micro_batch_size: int = 4,
        global_batch_size: int = 8,
        rampup_batch_size: list[int] | None = None,
        num_train_samples: int = 10_000_000,
        num_val_samples: int = 10_000,
        num_test_samples: int = 10_000,
        num_workers: int = 8,
        pin_memory: bool = True,
        persistent_workers: bool = False,
        create_attention_mask: bool = False,
        seed: int = 1234,
    ) -> None:
        super().__init__(
            seq_length=seq_length,
            tokenizer=tokenizer,
            micro_batch_size=micro_batch_size,
            global_batch_size=global_batch_size,
            rampup_batch_size=rampup_batch_size,
            num_train_samples=num_train_samples,
            num_val_samples=num_val_samples,
            num_test_samples=num_test_samples,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
            create_attention_mask=create_attention_mask,
        )
        self.seed = seed

    def setup(self, stage: str = "") -> None:
        # The dataset draws sample i from seed + i: without a hash, two seeds would give the same samples, shifted.
        base = int(np.random.SeedSequence(self.seed).generate_state(1)[0])

        def dataset(name: str, samples: int, offset: int) -> Any:
            return _MockGPTDataset(
                self.tokenizer, name, samples, self.seq_length, base + offset, self.create_attention_mask
            )

        self._train_ds = dataset("train", self.num_train_samples, 0)
        self._validation_ds = dataset("valid", self.num_val_samples, self.num_train_samples)
        self._test_ds = dataset("test", self.num_test_samples, self.num_train_samples + self.num_val_samples)


class IndexedData(Ramping, PreTrainingDataModule):
    """Megatron .bin/.idx prefixes, as ``slipway data prepare`` writes them."""
