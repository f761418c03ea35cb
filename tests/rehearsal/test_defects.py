"""Defects of NeMo 2.7.3 with megatron-core 0.15 that parity found: upstream's setting fails and ours passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slipway import configs
from slipway.configs import Spec, load
from slipway.configs.schema import LoadBalancing
from slipway.launch.rehearsal import ranks
from slipway.launch.rehearsal.rehearse import RELATIVE_TOLERANCE, import_nemo, rehearse, run_toy, train_rank
from slipway.launch.rehearsal.shrink import shrink, single_process
from slipway.planner.rules import is_legal, violations

pytestmark = [pytest.mark.nemo, pytest.mark.slow]


def _toy(name: str, *overrides: str) -> Spec:
    return shrink(load(name, list(overrides)).spec)


def _worst(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


def test_interleaving_over_two_stages_with_batched_sends_trains_on_wrong_gradients() -> None:
    toy = replace(_toy("llama3_8b", "layout.pp=2", "layout.vpp=2"), gpus=2)
    toy = replace(toy, layout=replace(toy.layout, gbs=4))
    whole, _ = run_toy(single_process(toy))
    ours, _ = run_toy(toy)

    def upstream(recipe: Any) -> None:
        recipe.model.config.overlap_p2p_comm = False
        recipe.model.config.batch_p2p_comm = True

    theirs, _ = run_toy(toy, change=upstream)
    assert _worst(ours, whole) <= RELATIVE_TOLERANCE
    assert _worst(theirs, whole) > 100 * RELATIVE_TOLERANCE


def test_auxiliary_loss_under_context_parallelism_keeps_its_gradient() -> None:
    toy = _toy("mixtral_8x22b", "layout.cp=2")
    toy = replace(toy, model=replace(toy.model, moe_aux_loss_coeff=0.1))
    whole, _ = run_toy(single_process(toy))
    ours, _ = run_toy(toy)

    def upstream(recipe: Any) -> None:
        recipe.model.config.moe_aux_loss_coeff = 0.1

    theirs, _ = run_toy(toy, change=upstream)
    assert _worst(ours, whole) <= RELATIVE_TOLERANCE
    assert _worst(theirs, whole) > 5 * RELATIVE_TOLERANCE


def test_balance_over_the_global_batch_keeps_its_gradient_under_data_parallelism() -> None:
    """One rank with micro-batches of two sequences counts what two ranks with one sequence each count together."""
    toy = _toy("qwen3_30b_a3b", "layout.tp=1", "layout.ep=1")
    model = replace(toy.model, moe_aux_loss_coeff=1.0, moe_router_load_balancing_type=LoadBalancing.global_aux_loss)
    two = replace(toy, model=model, gpus=2, layout=replace(toy.layout, mbs=1, gbs=4))
    whole, _ = run_toy(replace(two, gpus=1, layout=replace(two.layout, mbs=2)))
    ours, _ = run_toy(two)

    def upstream(recipe: Any) -> None:
        recipe.model.config.moe_aux_loss_coeff = 1.0

    theirs, _ = run_toy(two, change=upstream)
    assert _worst(ours, whole) <= RELATIVE_TOLERANCE
    assert _worst(theirs, whole) > 5 * RELATIVE_TOLERANCE


def test_replicated_weights_of_latent_attention_count_once_in_the_gradient_norm() -> None:
    """What is clipped depends on the norm, and a toy's Adam, whose epsilon is not negligible, on what is clipped."""
    toy = _toy("deepseek_v3", "layout.tp=2", "layout.ep=1", "layout.pp=1")
    whole, _ = run_toy(single_process(toy))
    ours, _ = run_toy(toy)

    def upstream(recipe: Any) -> None:
        from functools import partial

        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

        recipe.model.config.transformer_layer_spec = partial(get_gpt_decoder_block_spec, use_transformer_engine=True)

    theirs, _ = run_toy(toy, change=upstream)
    assert _worst(ours, whole) <= RELATIVE_TOLERANCE
    assert _worst(theirs, whole) > 5 * RELATIVE_TOLERANCE


def test_experts_split_unlike_the_rest_without_expert_parallelism_drift_apart() -> None:
    ours = load("qwen3_30b_a3b", ["gpus=2", "layout.tp=2", "layout.ep=1", "layout.pp=1", "layout.etp=2"]).spec
    theirs = replace(ours, layout=replace(ours.layout, etp=1))
    assert is_legal(ours)
    assert {v.rule for v in violations(theirs)} == {"ep1-etp"}
    assert rehearse(ours).agrees
    assert rehearse(theirs).max_rel_diff > 5 * RELATIVE_TOLERANCE  # on both draws


def test_further_tokens_under_context_parallelism_are_averaged_by_each_rank_alone() -> None:
    toy = _toy("llama3_8b", "model.mtp_num_layers=1", "layout.cp=2")
    whole, _ = run_toy(single_process(toy))
    ours, _ = run_toy(toy)

    def upstream(recipe: Any) -> None:
        from megatron.core.models.gpt import gpt_model
        from megatron.core.transformer.multi_token_prediction import roll_tensor

        from slipway.recipes.reference import emulation

        emulation.enter()
        gpt_model.roll_tensor = roll_tensor

    theirs, _ = run_toy(toy, change=upstream)
    assert _worst(ours, whole) <= RELATIVE_TOLERANCE
    assert RELATIVE_TOLERANCE < _worst(theirs, whole) < 2 / 64 * toy.model.mtp_loss_scaling_factor  # of 64 tokens


def test_a_seed_is_also_the_weights(tmp_path: Path) -> None:
    """The loss of the first step, before any weight moves, on the same mock data for every seed."""
    import_nemo()
    toy = single_process(_toy("llama3_8b"))

    def first_loss(seed: int, *, ours: bool = True) -> float:
        kept = replace(toy.run, dir=str(tmp_path), seed=seed, max_steps=1, async_save=False, val_check_interval=0)

        def work(_: int) -> float:
            import fiddle as fdl

            from slipway.recipes.build import build
            from slipway.recipes.runtime.seed import Seed

            recipe = build(replace(toy, run=kept), cpu=True)
            recipe.data.seed = 0
            recipe.trainer.callbacks = [c for c in recipe.trainer.callbacks if ours and c.__fn_or_cls__ is Seed]
            recipe.trainer.enable_checkpointing = False
            recipe.trainer.logger = False
            recipe.log.ckpt = recipe.log.tensorboard = recipe.resume = None
            built = fdl.build(recipe)
            built()
            return float(built.keywords["trainer"].callback_metrics["reduced_train_loss"])

        return float(ranks.run(1, work, timeout_s=200).results[0])

    assert first_loss(1) == first_loss(1) != first_loss(2)
    assert first_loss(1, ours=False) == first_loss(2, ours=False), "upstream's seed is not the recipe's"


def _with_checkpoints(folder: Path, every: int, steps: int, *, reshardable: bool = True) -> Any:
    """A change that puts checkpointing back into a rehearsal."""

    def change(recipe: Any) -> None:
        import nemo_run as run
        from nemo import lightning as nl

        recipe.trainer.enable_checkpointing = True
        recipe.trainer.max_steps = steps
        recipe.trainer.strategy.ckpt_async_save = False
        recipe.trainer.strategy.ckpt_optim_fully_reshardable = reshardable
        recipe.log.log_dir = str(folder)
        recipe.log.ckpt = run.Config(
            nl.ModelCheckpoint,
            save_last=True,
            save_top_k=-1,
            monitor="step",
            mode="max",
            every_n_train_steps=every,
            filename="{step}",
            save_optim_on_train_end=True,
            always_save_context=False,
            save_context_on_train_end=False,
        )
        recipe.resume = run.Config(nl.AutoResume, resume_if_exists=True, resume_ignore_no_checkpoint=True)

    return change


def _train(spec: Spec, folder: Path, steps: int, *, reshardable: bool = True) -> list[float]:
    import_nemo()
    spec = replace(
        spec, run=replace(spec.run, dir=str(folder), max_steps=steps, async_save=False, val_check_interval=0)
    )
    work = train_rank(spec, _with_checkpoints(folder, 3, steps, reshardable=reshardable))
    return [float(x) for x in ranks.run(spec.gpus, work, timeout_s=300).results[-1]]


def test_a_checkpoint_written_under_tp_resumes_under_pp(tmp_path: Path) -> None:
    tensor = replace(_toy("llama3_8b", "layout.tp=2"), gpus=2)
    tensor = replace(tensor, layout=replace(tensor.layout, gbs=4))
    pipeline = replace(tensor, layout=replace(tensor.layout, tp=1, pp=2))
    uninterrupted = _train(tensor, tmp_path / "whole", 6)
    first = _train(tensor, tmp_path / "ours", 3)
    rest = _train(pipeline, tmp_path / "ours", 6)
    assert first == uninterrupted[:3]
    assert _worst(rest, uninterrupted[3:]) <= RELATIVE_TOLERANCE
    _train(tensor, tmp_path / "upstream", 3, reshardable=False)
    with pytest.raises(ranks.RankFailure):
        _train(pipeline, tmp_path / "upstream", 6, reshardable=False)


def test_a_longer_run_does_not_train_on_at_the_least_learning_rate(in_child: Any) -> None:
    def rates() -> dict[str, Any]:
        import torch
        from nemo.lightning.pytorch.optim import CosineAnnealingScheduler

        from slipway.configs.schedule import Batches, LearningRate
        from slipway.recipes.runtime.schedule import StagedRate

        def optimizer_at_one() -> Any:
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)

        def upstream(steps: int) -> Any:
            optimizer = optimizer_at_one()
            made = CosineAnnealingScheduler(warmup_steps=2, min_lr=0.1, max_steps=steps, constant_steps=0)
            return optimizer, made.scheduler(None, optimizer)["lr_scheduler"]["scheduler"]

        def ours(extend: bool = False) -> Any:
            optimizer = optimizer_at_one()
            rate = LearningRate("2 steps", ("cosine until 40 steps to 0.1",), Batches((), 1, 1))
            return optimizer, StagedRate(optimizer, rate, extend)

        def advance(optimizer: Any, policy: Any, steps: int) -> float:
            for _ in range(steps):
                optimizer.step()
                policy.step()
            return float(optimizer.param_groups[0]["lr"])

        out: dict[str, Any] = {}
        optimizer, policy = upstream(10)
        advance(optimizer, policy, 10)
        state = policy.state_dict()
        optimizer, policy = upstream(40)
        policy.load_state_dict(state)
        out["upstream"] = advance(optimizer, policy, 5)
        optimizer, policy = ours()
        try:
            policy.load_state_dict(state)
        except configs.Refusal as error:
            out["refused"] = error.sentence()
        optimizer, policy = ours(extend=True)
        policy.load_state_dict(state)
        out["ours"] = advance(optimizer, policy, 5)
        optimizer, policy = ours()
        out["fresh"] = advance(optimizer, policy, 15)
        return out

    seen = in_child(rates)
    assert seen["upstream"] == pytest.approx(0.1), "upstream stays at min_lr"
    assert seen["ours"] == pytest.approx(seen["fresh"])
    assert "cosine until 10 steps to 0.1 -> warmup 2 steps; cosine until 40 steps" in seen["refused"]
    assert "run.extend_schedule=true" in seen["refused"]


def test_no_family_inherits_another_ones_epsilon(in_child: Any) -> None:
    published = {"llama2_7b": 1e-5, "llama3_8b": 1e-8, "gpt3_175b": 1e-8, "deepseek_v3": 1e-8}

    def upstream() -> dict[str, float]:
        from slipway.recipes.upstream import upstream_recipe

        return {name: upstream_recipe(name).optim.config.adam_eps for name in published}

    assert set(in_child(upstream).values()) == {1e-5}
    for name, eps in published.items():
        assert load(name).spec.optim.adam_eps == eps
        assert configs.optimizer(load(name).spec.optim.name).source
