"""Every recipe, split as it is published, trains as one process does: real Megatron-Core ranks over Gloo, fp32, five steps."""

from __future__ import annotations

from typing import Any

import pytest

import planner
from configs import Refusal, load
from launch.rehearse import RELATIVE_TOLERANCE, rehearse
from launch.shrink import shrink, single_process
from planner.rules import is_legal

# name, overrides: NeMo 2.7.3's own layouts, and between them every dimension and its partners
LAYOUTS = [
    ("llama3_8b", "gpus=16 layout.cp=2"),
    ("llama3_8b", "layout.fsdp=megatron"),
    ("llama3_8b", "layout.fsdp=megatron layout.tp=2"),
    ("llama3_8b", "layout.tp=2 layout.recompute=full"),
    ("llama3_8b", "layout.pp=2 layout.recompute=selective layout.recompute_modules=[mlp]"),
    ("llama3_70b", "layout.tp=4 layout.pp=4 layout.vpp=5 layout.cp=2"),
    ("llama31_8b", "layout.tp=2 layout.pp=2 layout.vpp=2"),
    ("llama31_70b", "layout.tp=8 layout.pp=4 layout.gbs=128"),
    ("llama31_405b", "gpus=1024 layout.tp=8 layout.pp=8 layout.vpp=2 layout.cp=4 layout.gbs=512"),
    ("llama32_1b", "layout.pp=2"),
    ("llama32_3b", "layout.tp=4"),
    ("llama2_7b", "layout.tp=2"),
    ("llama2_13b", "layout.pp=2"),
    ("llama2_70b", "layout.tp=8 layout.pp=2"),
    ("mixtral_8x7b", "layout.pp=4 layout.vpp=8 layout.ep=8"),
    ("mixtral_8x7b", "layout.tp=2 layout.ep=2 layout.etp=2"),
    ("mixtral_8x22b", "layout.tp=2 layout.pp=4 layout.vpp=14 layout.cp=2 layout.ep=8"),
    ("gpt3_175b", "layout.tp=4 layout.pp=8 layout.vpp=6"),
    ("nemotron4_15b", "layout.tp=4"),
    ("nemotron4_340b", "gpus=768 layout.tp=8 layout.pp=12 layout.vpp=8 layout.cp=2"),
    ("qwen3_8b", "layout.tp=4"),
    ("qwen3_30b_a3b", "gpus=32 layout.tp=4 layout.pp=2 layout.ep=4 layout.etp=1"),
    ("qwen3_235b_a22b", "gpus=1024 layout.tp=4 layout.pp=16 layout.cp=2 layout.ep=8 layout.etp=1"),
    ("deepseek_v3", "layout.tp=2 layout.pp=16 layout.ep=64 layout.etp=1"),
    ("llama3_tiny", "layout.tp=1 layout.pp=2 layout.vpp=2"),
    ("mixtral_tiny", ""),
]
QUICK = [LAYOUTS[5], LAYOUTS[16]]


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
    assert toy.layout.fsdp is real.layout.fsdp
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
