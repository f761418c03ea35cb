"""The built schedule against Megatron-Core's and NeMo's own, and training through a ramp that resumes bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slipway.configs import Refusal, Spec, load
from slipway.configs.schedule import Batches, LearningRate
from slipway.launch.rehearsal import ranks
from slipway.launch.rehearsal.rehearse import import_nemo, seed_after_configure
from slipway.launch.rehearsal.shrink import shrink

PEAK, LEAST, STEPS = 3e-4, 3e-6, 400


@pytest.mark.nemo
def test_it_is_megatrons_and_nemos_own_where_they_have_it(in_child: Any) -> None:
    """Also the ramp, and what a checkpoint of each holds."""

    def compare() -> dict[str, Any]:
        import torch
        from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator
        from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
        from nemo.core.optim.lr_scheduler import CosineAnnealing

        from slipway.recipes.runtime.batch import RampCalculator
        from slipway.recipes.runtime.schedule import StagedRate

        def optimizer() -> Any:
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)

        def rates(policy: Any, optimizer: Any, step: Any) -> list[float]:
            out = []
            for _ in range(STEPS + 10):
                out.append(float(optimizer.param_groups[0]["lr"]))
                optimizer.step()
                step(policy)
            return out

        def ours(stages: list[str], warmup: str = "20 steps") -> list[float]:
            made = optimizer()
            policy = StagedRate(made, LearningRate(warmup, tuple(stages), Batches((), 4, 8)), extend=False)
            return rates(policy, made, lambda policy: policy.step())

        def megatron(style: str, wsd: str | None = None) -> list[float]:
            made = optimizer()
            policy = OptimizerParamScheduler(
                made, 0.0, PEAK, LEAST, 20, STEPS, style, 0.0, 0.0, 1, "constant",
                wsd_decay_steps=100 if wsd else None, lr_wsd_decay_style=wsd,
            )  # fmt: skip
            return rates(policy, made, lambda policy: policy.step(1))

        end = f"until {STEPS} steps to {LEAST}"
        made = optimizer()
        nemo = CosineAnnealing(made, max_steps=STEPS, warmup_steps=20, constant_steps=0, min_lr=LEAST)
        out: dict[str, Any] = {
            "nemo": (rates(nemo, made, lambda policy: policy.step()), ours([f"cosine {end}"])),
            "cosine": (megatron("cosine"), ours([f"cosine {end}"])),
            "linear": (megatron("linear"), ours([f"linear {end}"])),
            "inverse_sqrt": (megatron("inverse-square-root"), ours([f"inverse_sqrt {end}"])),
            "wsd": (megatron("WSD", "minus_sqrt"), ours(["constant until 300 steps", f"one_minus_sqrt {end}"])),
            "tokens": (ours([f"cosine {end}"]), ours([f"cosine until {STEPS * 32} tokens to {LEAST}"], "640 tokens")),
        }
        theirs = RampupBatchsizeNumMicroBatchesCalculator(48, 2, 2, False, 0, 8, 8, 4096)
        mine = RampCalculator(Batches(("8 by 8 until 32768 tokens",), 48, 8), 2, 2)
        ramp, consumed = [], 0
        while consumed < 6000:
            for calculator in (theirs, mine):
                calculator.update(consumed, consistency_check=True)
            ramp.append((theirs.get(), mine.get(), theirs.get_current_global_batch_size()))
            consumed += ramp[-1][2]
        out["ramp"] = ramp
        return out

    seen = in_child(compare)
    ramp = seen.pop("ramp")
    assert [theirs for theirs, _, _ in ramp] == [mine for _, mine, _ in ramp]
    assert len({gbs for *_, gbs in ramp}) == 6
    nemo, mine = seen.pop("nemo")
    assert mine == nemo, "bit for bit"
    for name, (theirs, mine) in seen.items():
        # Megatron-Core's warm-up starts at 0; from its end on the two agree
        end = STEPS if name == "inverse_sqrt" else len(mine)  # at its end Megatron-Core's falls to the least at once
        assert mine[20:end] == pytest.approx(theirs[20:end], rel=1e-12), name


def _spec(*overrides: str) -> Spec:
    toy = shrink(load("deepseek_v3", ["layout.tp=1", "layout.pp=1", "layout.ep=2", *overrides]).spec)
    tokens = 4 * toy.seq_length  # of four sequences
    optim = replace(
        toy.optim,
        schedule=load("deepseek_v3").spec.optim.schedule,
        stages=[f"constant until {4 * tokens} tokens", f"cosine until {12 * tokens} tokens to 0.001"],
        decay_steps=0,
        batch_ramp=[f"4 by 4 until {6 * tokens} tokens"],
        changes=[
            f"mtp_loss_scaling_factor 0.1 from {4 * tokens} tokens",
            f"moe_router_bias_update_rate 0 from {7 * tokens} tokens",
        ],
    )
    layout = replace(toy.layout, mbs=1, gbs=16)
    run = replace(toy.run, async_save=False, val_check_interval=3, limit_val_batches=1)
    return replace(toy, layout=layout, optim=optim, run=run)


def _train(spec: Spec, folder: Path, steps: int) -> list[tuple[Any, ...]]:
    """What rank 0 saw at each step: loss, consumed samples, learning rate, constants of the loss."""
    import_nemo()
    run = replace(spec.run, dir=str(folder), max_steps=steps, checkpoint_every_n_steps=1)

    def work(rank: int) -> list[tuple[Any, ...]]:
        import fiddle as fdl
        import lightning.pytorch as pl

        from slipway.recipes.build import build

        seen: list[tuple[Any, ...]] = []

        class Watch(pl.Callback):
            def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
                config = trainer.strategy.megatron_parallel[0].config
                seen.append(
                    (
                        float(trainer.callback_metrics["reduced_train_loss"]).hex(),
                        trainer.datamodule.data_sampler.compute_consumed_samples(),
                        trainer.optimizers[0].param_groups[0]["lr"],
                        config.mtp_loss_scaling_factor,
                        config.moe_router_bias_update_rate,
                    )
                )

        seed_after_configure(spec.run.seed)
        recipe = build(replace(spec, run=run), cpu=True)
        recipe.trainer.enable_progress_bar = False
        built = fdl.build(recipe)
        built.keywords["trainer"].callbacks.append(Watch())
        built()
        return seen

    try:
        return list(ranks.run(spec.gpus, work, timeout_s=300).results[0])
    except ranks.RankFailure as failure:
        pytest.fail(failure.log[-5000:])


@pytest.mark.nemo
@pytest.mark.slow
def test_a_run_through_its_ramp_and_its_changes_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Cut at a step where the batch grows, and once inside each batch: the same samples, rates, weights and losses."""
    spec = _spec()
    whole = _train(spec, tmp_path / "whole", 6)
    assert [step[1] for step in whole] == [4, 8, 16, 28, 44, 60], "batches of 4, 4, 8, 12, 16, 16"
    assert [step[3] for step in whole] == [0.3, 0.3, 0.3, 0.1, 0.1, 0.1]
    assert [step[4] for step in whole] == [1e-3, 1e-3, 1e-3, 1e-3, 0.0, 0.0]
    cut = [_train(spec, tmp_path / "cut", steps) for steps in (2, 4, 6)]
    assert [step for part in cut for step in part] == whole


@pytest.mark.nemo
def test_the_built_recipe_has_the_schedule_of_the_spec(in_child: Any) -> None:
    def built() -> dict[str, Any]:
        import fiddle as fdl

        from slipway.launch.export import built_recipe
        from slipway.recipes.runtime.batch import RampSampler

        recipe = built_recipe("deepseek_v3", ["optim.schedule=wsd", "optim.stages=[]", "optim.decay_tokens=14.8T"])
        data = fdl.build(recipe.data)
        assert isinstance(data.data_sampler, RampSampler)
        constant = built_recipe("deepseek_v3", ["layout.gbs=8192"])
        return {
            "stages": list(recipe.optim.lr_scheduler.stages),
            "warmup": recipe.optim.lr_scheduler.warmup,
            "sizes": data.data_sampler.batches.sizes,
            "constant": type(fdl.build(constant.data).data_sampler).__name__,
            "changes": [c.changes for c in recipe.trainer.callbacks if hasattr(c, "changes")],
            "mtp": recipe.model.config.mtp_loss_scaling_factor,
            "rope": [
                built_recipe("deepseek_v3", ["model.rope_scaling_factor=1"]).model.config.rotary_scaling_factor,
                built_recipe("llama31_8b", ["model.rope_scaling_factor=1"]).model.config.scale_factor,
                hasattr(built_recipe("llama31_8b", []).model.config, "scale_factor"),
            ],
        }

    seen = in_child(built)
    assert seen["stages"] == [
        "constant until 13320000000000 tokens",
        "one_minus_sqrt until 14800000000000 tokens to 7.3e-06",
    ]
    assert seen["warmup"] == "2000 steps"
    assert (seen["sizes"][0], seen["sizes"][-1]) == (3072, 15360)
    assert seen["constant"] == "MegatronDataSampler"
    assert len(seen["changes"][0]) == 2
    assert seen["mtp"] == 0.3
    assert seen["rope"] == [1.0, 1.0, True]


def test_a_ramp_that_the_ranks_cannot_share_is_refused() -> None:
    from slipway import planner

    spec = planner.complete(load("llama3_8b", ["gpus=8", "layout.tp=1", "optim.batch_ramp=[12 until 1B tokens]"]))
    with pytest.raises(Refusal, match="optim.batch_ramp has a batch of 12 sequences: layout.gbs=12 is not a multiple"):
        planner.require_legal(spec)


def test_a_rate_that_ends_long_before_the_run_is_advised_against() -> None:
    from slipway import planner

    def advised(*overrides: str) -> list[str]:
        spec = load("llama31_405b", ["layout.tp=8", "layout.pp=9", *overrides]).spec
        return [a.message for a in planner.violations(spec, planner.rules.Severity.advice) if a.rule == "rate-ends"]

    assert advised() == []
    assert "1,200,000 of the run's 3,778,367 steps, 4.95 of 15.6 T tokens" in advised("layout.gbs=504")[0]
    assert advised("layout.gbs=504", "optim.decay_steps=0", "optim.decay_tokens=15.6T") == []
