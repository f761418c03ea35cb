"""The data module, and the tokenizer."""

from __future__ import annotations

from typing import Any

import nemo_run as run

from slipway.configs import Data, Spec
from slipway.configs.schema import DataKind
from slipway.recipes.build.logging import run_dir
from slipway.recipes.finetune.data import InstructionData, MockInstructions
from slipway.recipes.runtime.data import IndexedData, MockData, NullTokenizer, Tokenizer


def tokenizer(spec: Spec) -> run.Config:
    """A Hugging Face tokenizer, or one of integers where ``data.tokenizer`` is empty."""
    if spec.data.tokenizer:
        return run.Config(Tokenizer, pretrained_model_name=spec.data.tokenizer, rows=spec.model.vocab_size)
    return run.Config(NullTokenizer, vocab_size=spec.model.vocab_size)


def data_module(spec: Spec, *, cpu: bool) -> run.Config:
    """Random tokens, Megatron .bin/.idx files, or instructions."""
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
    if spec.data.kind is DataKind.instructions:
        return _instructions(spec, common)
    if spec.data.kind is DataKind.mock and spec.task.finetunes:
        return run.Config(MockInstructions, packed=spec.data.packed, seed=spec.run.seed, **common)
    if spec.data.kind is DataKind.mock:
        return run.Config(MockData, seed=spec.run.seed, **common)
    return run.Config(
        IndexedData,
        paths=_paths(spec.data),
        split=None if spec.data.validation_paths else spec.data.split,
        seed=spec.run.seed,
        **common,
    )


TOKENS = "instructions"  # folder of a run, with the tokens of its instructions


def _instructions(spec: Spec, common: dict[str, Any]) -> run.Config:
    data = spec.data
    return run.Config(
        InstructionData,
        paths=list(data.paths),
        cache=str(run_dir(spec) / TOKENS),
        split=data.split,
        validation_paths=list(data.validation_paths),
        packed=data.packed,
        template=data.template.value,
        chat_template=data.chat_template,
        too_long=data.too_long.value,
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
