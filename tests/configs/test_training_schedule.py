"""What a run does over its tokens: the laws of its learning rate and of its batch, and the refusals of bad lines."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway.configs import Refusal, load
from slipway.configs.schedule import Batches, LearningRate, LossConstants, schedule_of

PEAK, LEAST = 3e-4, 3e-6
DECAYS = ("cosine", "linear", "one_minus_sqrt")


@pytest.mark.parametrize("shape", DECAYS)
@pytest.mark.parametrize("unit", ["steps", "tokens"])
def test_a_decay_starts_at_the_peak_falls_and_ends_at_the_least(shape: str, unit: str) -> None:
    scale = 1 if unit == "steps" else 8
    batches = Batches((), gbs=4, seq_length=2)
    rate = LearningRate(f"{10 * scale} {unit}", (f"{shape} until {100 * scale} {unit} to {LEAST}",), batches)
    values = [rate.at(step, 8 * step, PEAK) for step in range(121)]
    assert values[0] == PEAK / 11, "the first step trains"
    assert values[:11] == sorted(values[:11])
    assert values[10] == PEAK
    assert values[10:101] == sorted(values[10:101], reverse=True)
    assert values[100:] == [LEAST] * 21
    assert rate.steps == 100


def test_the_shapes_differ_as_their_formulas_do() -> None:
    def middle(shape: str) -> float:
        return LearningRate("", (f"{shape} until 100 steps to 0",), Batches((), 1, 1)).at(25, 25, 1.0)

    assert middle("linear") == 0.75
    assert middle("cosine") == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert middle("one_minus_sqrt") == 0.5


def test_the_inverse_square_root_quarters_over_sixteen_warm_ups() -> None:
    rate = LearningRate("10 steps", ("inverse_sqrt until 1000 steps to 0.1",), Batches((), 1, 1))
    assert rate.at(160, 160, 1.0) == pytest.approx(0.25)
    assert rate.at(999, 999, 1.0) == pytest.approx(0.1, rel=1e-3)
    assert rate.at(5000, 5000, 1.0) == pytest.approx(0.1)


def test_stages_in_steps_and_in_tokens_follow_each_other() -> None:
    batches = Batches(("2 until 40 tokens",), gbs=4, seq_length=2)  # 10 steps of 4 tokens, then 8 tokens a step
    lines = ("constant until 120 tokens", "linear until 30 steps to 0", "constant until 40 steps to 0.5")
    rate = LearningRate("5 steps", lines, batches)
    at = [rate.at(step, batches.tokens_at(step), 1.0) for step in range(41)]
    assert at[5:21] == [1.0] * 16, "120 tokens are 20 steps"
    assert at[25] == 0.5
    assert at[30:] == [0.5] * 11
    assert rate.steps == 40


def test_deepseek_holds_its_rate_to_10_t_tokens_as_its_paper_says() -> None:
    spec = load("deepseek_v3").spec
    schedule = schedule_of(spec)

    def at(tokens: float) -> float:
        step = schedule.batches.steps_for(int(tokens))
        return schedule.learning_rate.at(step, schedule.batches.tokens_at(step), spec.optim.lr)

    assert [at(t) for t in (1e12, 5e12, 9.99e12)] == [2.2e-4] * 3
    assert at(12.15e12) == pytest.approx((2.2e-4 + 2.2e-5) / 2, rel=1e-3), "half way down the cosine"
    assert [at(t) for t in (14.31e12, 14.63e12, 14.64e12, 14.79e12)] == [2.2e-5, 2.2e-5, 7.3e-6, 7.3e-6]
    assert schedule.batches.sizes[0] == 3072
    assert schedule.batches.sizes[-1] == spec.layout.gbs == 15360
    assert schedule.batches.tokens_at(schedule.batches.rows[-1].first_step) == pytest.approx(469e9, rel=1e-3)
    assert schedule.batches.tokens_at(spec.run.max_steps) == pytest.approx(14.8e12, rel=1e-4)


@given(
    first=st.integers(1, 6),
    increment=st.integers(1, 5),
    parts=st.integers(1, 6),
    seq_length=st.integers(1, 9),
    until=st.integers(1, 3000),
)
def test_steps_and_tokens_of_a_ramp_are_each_others_inverse(
    first: int, increment: int, parts: int, seq_length: int, until: int
) -> None:
    gbs = first + increment * parts
    batches = Batches((f"{first} by {increment} until {until} tokens",), gbs, seq_length)
    tokens = 0
    for step in range(60):
        assert batches.tokens_at(step) == tokens
        assert batches.steps_for(tokens) == step
        assert batches.steps_for(tokens + 1) == step + 1
        size = batches.of_tokens(tokens)
        assert size == gbs if tokens >= until else first <= size < gbs
        tokens += size * seq_length


def test_a_ramp_of_several_stages() -> None:
    batches = Batches(("512 until 252M tokens", "1024 until 2.87T tokens"), 2048, 8192)
    assert batches.sizes == [512, 1024, 2048]
    assert [row.first_step for row in batches.rows][1] == 61, "252 M tokens in steps of 512 x 8,192"
    assert batches.rows[2].first_tokens >= 2.87e12 > batches.rows[2].first_tokens - 1024 * 8192


def test_constants_keep_their_last_value() -> None:
    constants = LossConstants(
        ("mtp_loss_scaling_factor 0.1 from 10 tokens", "moe_router_bias_update_rate 0 from 5 steps")
    )
    assert constants.at(0, 9) == {}
    assert constants.at(4, 10) == {"mtp_loss_scaling_factor": 0.1}
    assert constants.at(5, 99) == {"mtp_loss_scaling_factor": 0.1, "moe_router_bias_update_rate": 0.0}


def test_the_length_of_a_run_follows_its_tokens_and_its_batch() -> None:
    tokens = "optim.decay_tokens=1T"
    steps = {gbs: _load("llama3_8b", tokens, "optim.decay_steps=0", f"layout.gbs={gbs}") for gbs in (256, 512)}
    assert steps[512].spec.run.max_steps == math.ceil(1e12 / (512 * 8192))
    assert steps[256].spec.run.max_steps == math.ceil(1e12 / (256 * 8192))
    assert steps[256].provenance["run.max_steps"] == "the length of optim's schedule"
    assert _load("llama3_8b", tokens, "run.max_steps=7").spec.run.max_steps == 7


def test_a_given_batch_turns_the_recipes_ramp_off_and_says_so() -> None:
    resolved = _load("deepseek_v3", "layout.gbs=8192")
    assert resolved.spec.optim.batch_ramp == []
    assert resolved.provenance["optim.batch_ramp"] == "turned off by the override of layout.gbs"
    both = _load("deepseek_v3", "layout.gbs=8192", "optim.batch_ramp=[4096 until 1T tokens]").spec
    assert both.optim.batch_ramp == ["4096 until 1T tokens"]


def test_what_a_user_gives_replaces_the_recipes_other_form() -> None:
    steps = _load("gpt3_175b", "optim.warmup_steps=100")
    assert (steps.spec.optim.warmup_steps, steps.spec.optim.warmup_tokens) == (100, "")
    assert steps.provenance["optim.warmup_tokens"] == "follows from an override of optim"
    shape = _load("deepseek_v3", "optim.schedule=wsd").spec
    assert (shape.optim.stages, shape.optim.decay_tokens) == ([], "14800000000000")
    assert shape.run.max_steps == _load("deepseek_v3").spec.run.max_steps
    stages = _load("llama3_8b", "optim.stages=[linear until 1T tokens to 1e-6]").spec.optim
    assert (stages.schedule, stages.min_lr, stages.decay_tokens) == ("stages", 1e-6, "")
    assert _load("llama3_8b", "optim.schedule=constant").spec.optim.min_lr == 3e-4
    assert _load("nemotron4_15b", "optim.lr=1e-4").spec.optim.min_lr == 1e-4
    assert _load("llama3_8b", "optim.decay_steps=9000").spec.run.max_steps == 9000
    none = _load("llama3_8b", "optim.warmup_steps=0").spec.optim
    assert (none.warmup_steps, none.warmup_tokens) == (0, "")


def test_a_recipes_change_to_what_another_model_lacks_is_left_out_and_a_given_one_refused() -> None:
    resolved = _load("deepseek_v3", "model.mtp_num_layers=0")
    assert resolved.spec.optim.changes == ["moe_router_bias_update_rate 0 from 14.3T tokens"]
    assert "less what deepseek_v3 does not have" in resolved.provenance["optim.changes"]
    with pytest.raises(Refusal, match="llama3_8b has no bias of its routers"):
        _load("llama3_8b", "optim.changes=[moe_router_bias_update_rate 0 from 1T tokens]")


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("wsd", {0.5: 1.0, 0.89: 1.0, 0.925: 0.5, 1.0: 0.0}),
        ("linear", {0.5: 0.5, 1.0: 0.0}),
        ("one_minus_sqrt", {0.25: 0.5, 1.0: 0.0}),
    ],
)
def test_a_shape_by_its_name(schedule: str, shares: dict[float, float]) -> None:
    keys = [f"optim.schedule={schedule}", "optim.warmup_steps=0", "optim.decay_steps=0", "optim.decay_tokens=1T"]
    spec = _load("llama3_8b", *keys, "optim.min_lr=0", "optim.lr=1").spec
    rate = schedule_of(spec).learning_rate
    for share, value in shares.items():
        step = round(share * spec.run.max_steps)
        assert rate.at(step, round(share * 1e12), 1.0) == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optim.schedule=stages", "optim.stages=[cosine until 1T]"), "SHAPE until N tokens"),
        (("optim.schedule=stages", "optim.stages=[sine until 1T tokens to 0]"), "one of constant, linear, cosine"),
        (("optim.schedule=stages", "optim.stages=[cosine until 1T tokens]"), "it must be a list of lines"),
        (
            ("optim.schedule=stages", "optim.stages=[constant until 2T tokens,constant until 1T tokens]"),
            "each later than the one before",
        ),
        (("optim.schedule=stages", "optim.stages=[cosine until 1T tokens to nan]"), "it must be a list of lines"),
        (("optim.decay_tokens=many",), "optim.decay_tokens='many' is not legal: it must be a number of tokens"),
        (("optim.decay_tokens=-1T",), "optim.decay_tokens='-1T' is not legal"),
        (("optim.decay_tokens=0.0000000000001T",), "is not legal"),
        (
            ("optim.warmup_tokens=1T", "optim.warmup_steps=9"),
            "optim.warmup_steps=9 and optim.warmup_tokens=1T are both given",
        ),
        (
            ("optim.stages=[constant until 1T tokens]", "optim.schedule=cosine"),
            "optim.schedule=cosine does not read it",
        ),
        (
            ("optim.schedule=constant", "optim.min_lr=1e-6"),
            "optim.schedule=constant never reaches optim.min_lr",
        ),
        (("optim.stages=[linear until 1T tokens to 1e-6]", "optim.min_lr=1e-7"), "is not where optim.stages ends"),
        (("optim.stages=[constant until 1T tokens]", "optim.decay_tokens=2T"), "does not read them"),
        (("optim.min_lr=1",), "optim.min_lr=1 is above optim.lr"),
        (("optim.schedule=inverse_sqrt", "optim.warmup_steps=0"), "has no warm-up"),
        (("optim.schedule=stages", "optim.decay_tokens=''", "optim.decay_steps=0"), "has no optim.stages"),
        (("optim.schedule=wsd", "optim.wsd_decay=constant"), "optim.wsd_decay=constant does not reach"),
        (("optim.batch_ramp=[512 until 1T tokens]",), "goes from 512 sequences to 512"),
        (("optim.batch_ramp=[100 by 100 until 1T tokens]",), "by 100, which does not divide the 412"),
        (("optim.batch_ramp=[0 until 1T tokens]",), "GBS by INCREMENT until N tokens"),
        (("optim.changes=[lr 1 from 1T tokens]",), "NAME one of mtp_loss_scaling_factor"),
    ],
)
def test_a_bad_schedule_is_refused_in_one_sentence(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(Refusal) as refused:
        _load("llama3_8b", *overrides)
    assert message in refused.value.sentence()
    assert "\n" not in refused.value.sentence()


def _load(name: str, *overrides: str) -> Any:
    return load(name, list(overrides))
