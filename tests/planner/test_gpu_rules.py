"""What the stack would refuse on a GPU only is refused by the planner."""

from __future__ import annotations

import pytest

from slipway.configs import Refusal, load
from slipway.planner import only_planned, require_legal, violations


@pytest.mark.parametrize(
    ("name", "overrides", "rule", "word"),
    [
        ("llama3_8b", "layout.tp=1 layout.tp_comm_overlap=true", "tp-comm-overlap", "layout.tp=1"),
        ("llama3_8b", "layout.tp=2 layout.sp=false layout.tp_comm_overlap=true", "tp-comm-overlap", "layout.sp=false"),
        ("llama3_8b", "layout.tp=16 layout.tp_comm_overlap=true", "tp-comm-overlap", "NVLink domains of 8"),
        ("deepseek_v3", "layout.tp=2 layout.tp_comm_overlap=true", "tp-comm-overlap", "multi-latent"),
        (
            "llama3_8b",
            "precision=fp8_blockwise layout.tp=2 layout.tp_comm_overlap=true",
            "tp-comm-overlap",
            "blockwise",
        ),
        ("llama3_8b", "precision=fp8_current layout.tp=2 layout.tp_comm_overlap=true", "tp-comm-overlap", "in bf16"),
        ("mixtral_8x7b", "layout.dispatcher=flex layout.tp=1 layout.ep=1", "flex-dispatcher", "layout.ep=1"),
        ("mixtral_8x7b", "gpu=gb200 layout.dispatcher=flex layout.ep=8", "flex-dispatcher", "gb200"),
        ("mixtral_8x7b", "layout.cuda_graphs=true layout.ep=8", "experts-cuda-graphs", "no fixed size"),
        ("llama3_8b", "gpu=b200 precision=mxfp8 precision.fp8_param_gather=true", "mxfp8-param-gather", "overlap"),
        (
            "llama3_8b",
            "layout.cuda_graphs=true cluster.env.PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
            "cuda-graphs",
            "expandable_segments",
        ),
    ],
)
def test_a_switch_is_refused_where_the_stack_cannot_run_it(name: str, overrides: str, rule: str, word: str) -> None:
    found = {violation.rule: violation.message for violation in violations(load(name, overrides.split()).spec)}
    assert word in found[rule]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("llama3_8b", "precision=bf16 layout.tp=2 layout.tp_comm_overlap=true"),
        ("llama3_8b", "precision=fp8_delayed layout.tp=2 layout.tp_comm_overlap=true"),
        ("llama3_8b", "precision=bf16 layout.cuda_graphs=true layout.recompute=none"),
        ("mixtral_8x7b", "precision=bf16 layout.dispatcher=flex layout.ep=8 layout.tp=1 layout.pp=1"),
    ],
)
def test_a_switch_is_legal_where_the_stack_runs_it(name: str, overrides: str) -> None:
    assert violations(load(name, overrides.split()).spec) == []


@pytest.mark.parametrize(
    "overrides",
    [
        "gpu=b200 precision=nvfp4",
        "layout.pp=2 layout.schedule=gpipe",
        "model.window_size=4096",
    ],
)
def test_what_is_planned_and_not_trained_is_marked_and_refused_by_one_rule(overrides: str) -> None:
    spec = load("llama3_8b", ["gpus=8", "layout.tp=1", *overrides.split()]).spec
    [marked] = only_planned(spec)
    with pytest.raises(Refusal) as refusal:
        require_legal(spec)
    assert (refusal.value.message, refusal.value.rule) == (marked.message, "planned-only")
    assert "can be planned for but not trained" in marked.message
