"""Hybrids of Mamba-2 and attention: published sizes, Megatron-Core's rules, and how costs depend on the mix."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slipway import configs, planner
from slipway.configs import Refusal, Spec
from slipway.configs.schema import FeedForward, Mixer, layer_kinds
from slipway.planner.calibration import calibration_for
from slipway.planner.flops import forward_flops_per_token
from slipway.planner.memory import memory
from slipway.planner.parameters import model_parameters
from slipway.planner.time.step import step_time

NANO = "nemotron3_nano_30b_a3b"


def _spec(*overrides: str, model: str = NANO) -> Spec:
    return configs.load(
        "mixtral_8x7b", [f"model={model}", "gpus=16", "layout.tp=1", "layout.pp=1", "layout.ep=8", *overrides]
    ).spec


# Nano: the sum of its weights on Hugging Face. The others: their reports (arXiv:2504.03624, NVIDIA's model card).
@pytest.mark.parametrize(
    ("name", "total", "active", "within"),
    [
        (NANO, 31_577_937_344, 3.6e9, 0.0),
        ("nemotron3_super_120b_a12b", 120.6e9, 12.7e9, 0.006),
        ("nemotron_h_56b", 56.0e9, 56.0e9, 0.006),
    ],
)
def test_size_is_the_published_one(name: str, total: float, active: float, within: float) -> None:
    counted = model_parameters(configs.model(name), 8192)
    assert abs(counted[0] - total) <= within * total
    assert abs(counted[1] - active) <= 0.01 * active


def test_a_layer_is_one_block() -> None:
    model = configs.model(NANO)
    kinds = layer_kinds(model.shape)
    assert len(kinds) == model.num_layers
    assert all(kind.parts == 1 for kind in kinds)
    assert sum(kind.mixer is Mixer.mamba for kind in kinds) == 23
    assert sum(kind.mixer is Mixer.attention for kind in kinds) == 6
    assert sum(kind.feed_forward is FeedForward.experts for kind in kinds) == 23


def test_mamba_costs_the_same_a_token_at_any_length_and_attention_does_not() -> None:
    hybrid = configs.model(NANO)
    only_mamba = replace(hybrid, hybrid_override_pattern="M" * hybrid.num_layers)
    assert forward_flops_per_token(only_mamba, 65536) == forward_flops_per_token(only_mamba, 8192)
    assert forward_flops_per_token(hybrid, 65536) > forward_flops_per_token(hybrid, 8192)


def test_latent_experts_have_fewer_parameters_and_send_less() -> None:
    latent = _spec("layout.ep=16", model="nemotron3_super_120b_a12b")
    wide = replace(latent, model=replace(latent.model, moe_latent_size=0))
    assert model_parameters(wide.model, 8192)[0] > 3 * model_parameters(latent.model, 8192)[0]
    cal = calibration_for(latent)
    assert step_time(wide, cal).breakdown["ep"] > 3 * step_time(latent, cal).breakdown["ep"]


def test_mamba_in_place_of_attention_keeps_more_and_is_faster_on_long_sequences() -> None:
    """A Mamba block's projections are wider than attention's, and its scan's time is linear in the sequence."""
    spec = _spec("layout.seq_length=65536")
    fewer = replace(
        spec, model=replace(spec.model, hybrid_override_pattern=spec.model.hybrid_override_pattern.replace("*", "M"))
    )
    assert memory(fewer).peak_gib > memory(spec).peak_gib
    attention, only_mamba = (step_time(s, calibration_for(spec)) for s in (spec, fewer))
    assert only_mamba.breakdown["attention"] < attention.breakdown["attention"] / 4
    assert only_mamba.breakdown["elementwise"] > attention.breakdown["elementwise"]
    assert only_mamba.step_time_s < attention.step_time_s


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("layout.tp=16", "tp-query-groups"),
        ("layout.vpp=2", "hybrid-vpp"),
        ("layout.cp=3", "cp-mamba"),
        ("model.mamba_num_groups=3", "tp-mamba"),
    ],
)
def test_what_megatron_refuses(override: str, rule: str) -> None:
    assert rule in {v.rule for v in planner.violations(_spec("layout.tp=2", "gpus=96", "layout.pp=2", override))}


@pytest.mark.parametrize("override", ["model.num_layers=50", "model.hybrid_override_pattern=MEX"])
def test_a_malformed_pattern_is_refused(override: str) -> None:
    with pytest.raises(Refusal, match="symbols M"):
        _spec(override)


def test_a_model_known_to_the_planner_only_is_not_built() -> None:
    with pytest.raises(Refusal, match="can be planned for but not trained: no recipe builds it"):
        planner.require_legal(_spec())
