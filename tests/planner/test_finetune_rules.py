"""What finetuning cannot do is refused by a rule, by name; what it can is planned, and costs less than pretraining."""

from __future__ import annotations

import pytest

from slipway import configs, planner
from slipway.configs import Refusal, Spec, load
from slipway.planner.memory.estimate import Memory, memory
from slipway.planner.rules import require_legal
from slipway.planner.time.step import step_time

MOE, WIDE = "task=lora gpus=8 layout.tp=2", "task=lora gpus=64 layout.ep=64 layout.gbs=64"


@pytest.mark.parametrize(
    ("recipe", "words", "rule"),
    [
        ("llama3_8b", "task=lora task.lora_rank=0", "adapter-size"),
        ("llama3_8b", "task=lora task.lora_alpha=0", "adapter-size"),
        ("llama3_8b", "task=sft task.lora_rank=8", "adapter-size"),
        ("llama3_8b", "task=lora task.lora_targets=[linear_q]", "lora-matches-nothing"),
        ("llama3_8b", "task=lora task.lora_targets=[]", "lora-matches-nothing"),
        ("deepseek_v3", f"{WIDE} task.lora_targets=[linear_qkv] model.mtp_num_layers=0", "lora-matches-nothing"),
        ("mixtral_8x7b", f"{MOE} task.lora_targets=[linear_fc1]", "lora-experts-tp"),
        ("mixtral_8x7b", f"{MOE} layout.ep=4 layout.etp=1 task.lora_targets=[linear_fc2]", "lora-experts-tp"),
        ("llama3_8b", "task=sft layout.cp=2", "packed-sequences"),
        ("llama3_8b", "task=sft gpus=8 layout.mbs=2 layout.tp=2", "packed-sequences"),
        ("deepseek_v3", WIDE, "packed-sequences"),
        ("llama3_8b", "task=lora precision=fp8_current precision.fp8_param_gather=true", "adapter-levers"),
        ("llama3_8b", "task=lora gpus=8 layout.tp=2 layout.pp=2 levers.wgrad_deferral_limit=22", "adapter-levers"),
    ],
)  # fmt: skip
def test_what_finetuning_cannot_do_is_refused_by_name(recipe: str, words: str, rule: str) -> None:
    with pytest.raises(Refusal) as refused:
        require_legal(load(recipe, words.split()).spec)
    assert refused.value.rule == rule
    assert "Use " in refused.value.fix


@pytest.mark.parametrize("recipe", configs.recipe_names())
def test_every_recipe_has_a_legal_layout_for_lora(recipe: str) -> None:
    """With what the task brings: a batch of 32 packed sequences, and adapters on layers that the model has."""
    words = ["task=lora", *(["data.packed=false"] if configs.headline(recipe)[0].mtp_num_layers else [])]
    require_legal(planner.complete(load(recipe, words)))


def test_the_task_changes_what_the_recipe_says_and_the_user_changes_both() -> None:
    lora = load("llama31_405b", ["task=lora", "layout.gbs=64"])
    assert (lora.spec.optim.lr, lora.spec.run.max_steps, lora.spec.run.max_tokens) == (1e-4, 1000, "")
    assert lora.provenance["run.max_steps"] == "task=lora (configs/finetuning.yaml)"
    assert (lora.spec.layout.gbs, lora.provenance["layout.gbs"]) == (64, "override")
    assert load("mixtral_8x7b", ["task=lora"]).spec.task.lora_targets == ["linear_qkv", "linear_proj"]


def _spec(words: str) -> Spec:
    return load("llama3_8b", f"gpus=8 layout.gbs=32 {words}".split()).spec


def _planned(words: str) -> Memory:
    return memory(_spec(words))


def test_frozen_weights_keep_no_gradients_no_states_and_no_inputs() -> None:
    """Adapters on all layers keep every input, those on attention few, and the weights themselves train at 18 bytes."""
    few, all_, full = (
        _planned(words).stages[0] for words in ("task=lora task.lora_targets=[linear_qkv]", "task=lora", "task=sft")
    )
    assert 0 < few.gradients_gib < all_.gradients_gib < 0.01 * full.gradients_gib
    assert 0 < few.optimizer_gib < all_.optimizer_gib < 0.02 * full.optimizer_gib
    assert few.activations_gib < 0.9 * all_.activations_gib
    assert all_.activations_gib <= full.activations_gib
    assert all_.parameters_gib == pytest.approx(full.parameters_gib, rel=0.01)


def test_frozen_weights_cost_four_bytes_in_fp8_and_a_checkpoint_holds_the_adapter_only() -> None:
    bf16, fp8 = (_planned(f"task=lora precision={name}") for name in ("bf16", "fp8_current"))
    assert fp8.stages[0].parameters_gib == pytest.approx(2 * bf16.stages[0].parameters_gib, rel=0.1)
    assert bf16.checkpoint_gib < 1
    assert _planned("task=sft").checkpoint_gib > 100


def test_more_adapters_take_longer_and_less_than_training_the_weights() -> None:
    few, all_, full = (
        step_time(_spec(words)).step_time_s
        for words in ("task=lora task.lora_targets=[linear_qkv]", "task=lora", "task=sft")
    )
    assert few < all_ < full
