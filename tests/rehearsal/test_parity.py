"""Every recipe, in its published layout, trains as one process does: Megatron-Core over Gloo, fp32, five steps."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.parity import LAYOUTS
from slipway import planner
from slipway.configs import Refusal, load
from slipway.launch.rehearsal.rehearse import RELATIVE_TOLERANCE, rehearse
from slipway.launch.rehearsal.shrink import shrink, single_process
from slipway.planner.rules import is_legal

QUICK = [LAYOUTS[3], LAYOUTS[14]]


def _spec(name: str, overrides: str) -> Any:
    spec = planner.complete(load(name, overrides.split()))
    planner.require_legal(spec)
    return spec


@pytest.mark.parametrize(("name", "overrides"), LAYOUTS)
def test_the_toy_keeps_what_was_split(name: str, overrides: str) -> None:
    real = _spec(name, overrides)
    toy = shrink(real)
    for size in ("tp", "pp", "vpp", "cp", "ep"):
        assert (getattr(toy.layout, size) > 1) == (getattr(real.layout, size) > 1), size
    assert toy.gpus <= 8
    assert toy.model.is_mla == real.model.is_mla
    assert toy.model.tied == real.model.tied
    assert is_legal(toy), planner.violations(toy)
    assert single_process(toy).gpus == 1


@pytest.mark.nemo
@pytest.mark.parametrize(("name", "overrides"), QUICK)
def test_parity_quick(name: str, overrides: str) -> None:
    result = rehearse(_spec(name, overrides))
    assert result.max_rel_diff <= RELATIVE_TOLERANCE
    assert len(result.losses) == 5
    assert len(set(result.losses)) == 5, "the weights moved"


@pytest.mark.nemo
@pytest.mark.slow
@pytest.mark.parametrize(("name", "overrides"), [x for x in LAYOUTS if x not in QUICK])
def test_parity(name: str, overrides: str) -> None:
    result = rehearse(_spec(name, overrides))
    assert result.max_rel_diff <= RELATIVE_TOLERANCE, (result.losses, result.reference_losses)


def test_an_illegal_layout_is_refused_before_anything_runs() -> None:
    with pytest.raises(Refusal, match="layout.tp=3 does not divide"):
        _spec("llama3_8b", "layout.tp=3")
