"""Every set of recomputed modules of every model: recomputing more keeps less, and never less than the inputs."""

from __future__ import annotations

import itertools

import pytest

from slipway import configs
from slipway.configs.schema import FeedForward, layer_kinds
from slipway.planner.calibration import calibration_for
from slipway.planner.memory import saved_by_layer
from slipway.planner.rules import SELECTIVE_MODULES
from slipway.planner.workload import layer_context

ROUNDING = 1e-9  # of sums in another order


@pytest.mark.parametrize("name", configs.model_names())
def test_recomputing_more_keeps_less_and_at_least_the_inputs(name: str) -> None:
    spec = configs.load("llama3_8b", [f"model={name}", "layout.tp=1"]).spec
    context = layer_context(spec, calibration_for(spec)).without_recompute
    for kind in set(layer_kinds(spec.model.shape)):
        saved = saved_by_layer(context, kind)
        experts = kind.feed_forward is FeedForward.experts
        sets = itertools.chain.from_iterable(
            itertools.combinations(SELECTIVE_MODULES, count) for count in range(len(SELECTIVE_MODULES) + 1)
        )
        kept = {frozenset(modules): saved.kept(modules, experts) for modules in sets}
        assert kept[frozenset()] == saved.total
        for modules, bytes_kept in kept.items():
            assert bytes_kept >= saved.inputs * (1 - ROUNDING)
            for one_more in SELECTIVE_MODULES:
                assert kept[modules | {one_more}] <= bytes_kept * (1 + ROUNDING)
