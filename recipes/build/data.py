"""The data module of pretraining, and the tokenizer."""

from __future__ import annotations

from typing import Any

import nemo_run as run

from slipway.configs import Data, Spec
from slipway.recipes.runtime.data import IndexedData, MockData, NullTokenizer


def tokenizer(spec: Spec) -> run.Config:
    """A Hugging Face tokenizer, or one of integers where ``data.tokenizer`` is empty."""
    if spec.data.tokenizer:
        from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer

        return run.Config(AutoTokenizer, pretrained_model_name=spec.data.tokenizer)
    return run.Config(NullTokenizer, vocab_size=spec.model.vocab_size)


def pretraining_data(spec: Spec, *, cpu: bool) -> run.Config:
    """Random tokens, or Megatron .bin/.idx files."""
    common: dict[str, Any] = {
        "seq_length": spec.seq_length,
        "global_batch_size": spec.layout.gbs,
        "micro_batch_size": spec.layout.mbs,
        "tokenizer": tokenizer(spec),
        "num_workers": 0 if cpu else spec.data.num_workers,
        "pin_memory": not cpu,
        "persistent_workers": not cpu and spec.data.num_workers > 0,
    }
    if spec.optim.batch_ramp:
        common["rampup_batch_size"] = list(spec.optim.batch_ramp)
    if spec.data.kind == "mock":
        return run.Config(MockData, seed=spec.run.seed, **common)
    return run.Config(
        IndexedData,
        paths=_paths(spec.data),
        split=None if spec.data.validation_paths else spec.data.split,
        seed=spec.run.seed,
        **common,
    )


def _paths(data: Data) -> list[str] | dict[str, list[str]]:
    """What NeMo's module reads: one blend that it splits, or a blend of each split."""
    if not data.validation_paths:
        return list(data.paths)
    return {
        "train": list(data.paths),
        "validation": list(data.validation_paths),
        "test": list(data.test_paths or data.validation_paths),  # NeMo asks for files of all three
    }
