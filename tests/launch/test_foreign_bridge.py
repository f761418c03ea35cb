"""Configurations of Megatron-Bridge: a run_config.yaml, and the source of a recipe, of which nothing is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from slipway import configs, planner
from slipway.configs import Refusal
from slipway.launch import foreign
from slipway.launch.foreign.bridge.run import hub_model
from tests.launch.test_cli import slipway
from tests.launch.test_foreign import _read, _write

CONTAINER: dict[str, Any] = {
    "_target_": "megatron.bridge.training.config.ConfigContainer",
    "model": {
        "_target_": "megatron.bridge.models.llama.llama_provider.LlamaModelProvider",
        "num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32,
        "num_query_groups": 8, "kv_channels": 128, "vocab_size": 128256, "gated_linear_unit": True,
        "normalization": "RMSNorm", "add_bias_linear": False, "share_embeddings_and_output_weights": False,
        "position_embedding_type": "rope", "rotary_base": 500000, "seq_length": 8192, "should_pad_vocab": True,
        "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
        "tensor_model_parallel_size": 2, "context_parallel_size": 2, "sequence_parallel": True,
        "hidden_dropout": 0.0, "attention_dropout": 0.0, "made_up": 3, "offload_modules": None,
        "moe_token_dispatcher_type": "alltoall",
    },
    "train": {"micro_batch_size": 1, "global_batch_size": 512, "train_iters": 100},
    "ddp": {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
    "optimizer": {"lr": 3e-4, "min_lr": 3e-5, "weight_decay": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.95,
                  "adam_eps": 1e-8, "clip_grad": 1.0},
    "scheduler": {"lr_decay_style": "cosine", "lr_warmup_iters": 10},
    "mixed_precision": {"_target_": "MixedPrecisionConfig", "bf16": True, "grad_reduce_in_fp32": True},
    "comm_overlap": None,
}  # fmt: skip

RECIPE = '''
import os
import torch
from megatron.bridge import AutoBridge
from megatron.bridge.training.config import ConfigContainer

SIZE = 2 * 256
os.system("touch executed")


def _common() -> ConfigContainer:
    """Defaults."""
    where = os.path.join(os.getcwd(), "x")
    optimizer, scheduler = distributed_fused_adam_with_cosine_annealing(max_lr=3e-4, min_lr=3e-5)
    cfg = ConfigContainer(
        model=None,
        train=TrainingConfig(train_iters=10000, global_batch_size=SIZE, micro_batch_size=2),
        optimizer=optimizer,
        scheduler=scheduler,
        ddp=DistributedDataParallelConfig(overlap_grad_reduce=True, overlap_param_gather=True),
        checkpoint=CheckpointConfig(save=where),
        mixed_precision="bf16_mixed",
    )
    return cfg


def llama3_8b_pretrain_config(cp: int = 2, hub: str = "meta-llama/Meta-Llama-3-8B") -> ConfigContainer:
    cfg = _common()
    cfg.model = AutoBridge.from_hf_pretrained(hub).to_megatron_provider(load_weights=False)
    cfg.model.tensor_model_parallel_size = 2
    cfg.model.context_parallel_size = cp
    cfg.model.sequence_parallel = True
    cfg.model.seq_length = 8192
    cfg.model.pipeline_dtype = torch.bfloat16
    if cp > 1:
        cfg.train.micro_batch_size = 9
    if cp is None:
        cfg.train.micro_batch_size = 8
    else:
        cfg.train.micro_batch_size = 1
    cfg.checkpoint.load = where()
    cfg.model.init_method = where()
    cfg.model.num_layers_in_first_pipeline_stage = where()
    return cfg
'''


def _run_config(folder: Path, **changes: Any) -> Path:
    made = {**CONTAINER, "model": CONTAINER["model"] | changes}
    return _write(folder, yaml.safe_dump(made), "run_config.yaml")


def test_both_doors_give_the_answer_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run has the same parameters, memory and time; what was not understood is named."""
    monkeypatch.chdir(tmp_path)
    ours = configs.load("llama3_8b", ["gpus=16", "layout.tp=2", "layout.cp=2", "layout.mbs=1", "layout.gbs=512"]).spec
    expected = planner.check(ours)
    recipe = _write(tmp_path, RECIPE, "mine.py")
    readings = [
        _read(_run_config(tmp_path), "gpus=16"),
        foreign.read(Path(f"{recipe}:llama3_8b_pretrain_config"), foreign.Request(("gpus=16",))),
    ]
    for reading in readings:
        found = planner.check(reading.resolved.spec, reading.framework)
        assert (found.parameters, found.memory, found.time) == (expected.parameters, expected.memory, expected.time)
        optim = reading.resolved.spec.optim
        assert (optim.lr, optim.min_lr, optim.schedule.value) == (3e-4, 3e-5, "cosine")
    assert readings[0].unknown == ["model.made_up 3"] and readings[0].not_modelled == ["model.offload_modules null"]
    assert [text.split(": ", 1)[1] for text in readings[1].unknown] == [
        "if cp > 1", "cfg.model.num_layers_in_first_pipeline_stage = where()"
    ]  # fmt: skip
    assert not Path("executed").exists()


def test_overrides_are_theirs_or_ours_and_the_terms_are_theirs(tmp_path: Path) -> None:
    path = _run_config(tmp_path)
    spec = _read(
        path, "gpus=16", "train.global_batch_size=256", "model.context_parallel_size=1", "layout.tp=4"
    ).resolved.spec
    assert (spec.layout.gbs, spec.layout.cp, spec.layout.tp) == (256, 1, 4)
    done = slipway("check", str(path), "gpus=24", "model.tensor_model_parallel_size=3", code=2)
    assert "model.tensor_model_parallel_size=3 does not divide" in done.stderr and "layout." not in done.stderr


def test_a_stale_virtual_pipeline_is_refused(tmp_path: Path) -> None:
    """Megatron-Bridge issues 5443 and 5008: a layout of chunks beside another virtual size."""
    pipeline = {"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "Et*8|t*8|t*8|t*8L"}
    assert _read(_run_config(tmp_path, **pipeline), "gpus=16").resolved.spec.layout.vpp == 2
    with pytest.raises(Refusal, match="has 4 chunks for 2 stages, which is 2"):
        _read(_run_config(tmp_path, **pipeline, virtual_pipeline_model_parallel_size=4), "gpus=16")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("meta-llama/Meta-Llama-3-8B", "llama3_8b"),
        ("meta-llama/Llama-3.1-70B-Instruct", "llama31_70b"),
        ("Qwen/Qwen3-30B-A3B", "qwen3_30b_a3b"),
        ("deepseek-ai/DeepSeek-V3", "deepseek_v3"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral_8x7b"),
        ("openai/gpt-oss-20b", "gpt_oss_20b"),
    ],
)
def test_a_name_of_the_model_hub_is_a_model_of_ours(name: str, model: str) -> None:
    found = hub_model(name)
    assert found and found.name == model


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("mine.py:none", "has no function none; legal: _common"),
        ("unknown.py:llama3_8b_pretrain_config", "configs/model has no such model"),
        ("broken.py:f", "is not Python"),
        (
            "megatron.bridge.recipes.llama.llama3:llama3_8b_pretrain_config",
            "is of Megatron-Bridge, which is not installed",
        ),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    target: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path, RECIPE, "mine.py")
    _write(tmp_path, RECIPE.replace("Meta-Llama-3-8B", "Nobody-9B"), "unknown.py")
    _write(tmp_path, "import megatron.bridge\ndef f(:\n", "broken.py")
    with pytest.raises(Refusal) as refused:
        foreign.read(Path(target), foreign.Request())
    assert says in refused.value.sentence() and "\n" not in refused.value.sentence()
