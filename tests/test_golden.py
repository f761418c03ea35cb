"""Predicted memory against Megatron-LM's golden values: what its functional tests print on their last rank.

The bytes are by torch's counters. Source of every case: tests/functional_tests/test_cases of
github.com/NVIDIA/Megatron-LM, by the test's name and golden file.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy.golden import load
from slipway.planner.memory import GIB, stage_memory

GPT = {
    "--num-layers": 12,
    "--hidden-size": 512,
    "--num-attention-heads": 8,
    "--seq-length": 1024,
    "--max-position-embeddings": 1024,
    "--micro-batch-size": 4,
    "--global-batch-size": 32,
    "--bf16": True,
}
UNFUSED = {"--attention-backend": "unfused"}
NO_DROPOUT = {"--attention-dropout": 0.0, "--hidden-dropout": 0.0, "--sequence-parallel": True}
DEEPSEEK = {
    "--num-layers": 16,
    "--hidden-size": 1024,
    "--num-attention-heads": 32,
    "--seq-length": 4096,
    "--max-position-embeddings": 4096,
    "--ffn-hidden-size": 4096,
    "--make-vocab-size-divisible-by": 3232,
    "--multi-latent-attention": True,
    "--q-lora-rank": 1536,
    "--kv-lora-rank": 512,
    "--num-experts": 32,
    "--moe-router-topk": 4,
    "--moe-ffn-hidden-size": 1024,
    "--moe-shared-expert-intermediate-size": 1024,
    "--moe-layer-freq": "([0]*1+[1]*15)",
    "--mtp-num-layers": 1,
    "--expert-model-parallel-size": 4,
    "--expert-tensor-parallel-size": 1,
    "--tensor-model-parallel-size": 2,
    "--pipeline-model-parallel-size": 2,
    "--num-virtual-stages-per-pipeline-rank": 4,
    "--swiglu": True,
    "--disable-bias-linear": True,
    "--qk-layernorm": True,
    "--normalization": "RMSNorm",
    "--position-embedding-type": "rope",
    "--untie-embeddings-and-output-weights": True,
    "--use-distributed-optimizer": True,
    "--cross-entropy-loss-fusion": True,
}


def sizes(tp: int, pp: int, cp: int = 1) -> dict[str, Any]:
    return {"--tensor-model-parallel-size": tp, "--pipeline-model-parallel-size": pp, "--context-parallel-size": cp}


CASES: list[tuple[str, str, dict[str, Any], int, int]] = [
    # case, golden file, arguments, peak bytes, bytes between steps
    (
        "gpt3_mcore_te_tp1_pp1_uniform_full_recompute",
        "a100",
        {"--recompute-granularity": "full"} | UNFUSED,
        2534070272,
        1232487936,
    ),
    (
        "gpt3_mcore_te_tp1_pp1_dist_optimizer_no_mmap_bin_files",
        "a100",
        UNFUSED | {"--use-distributed-optimizer": True},
        4673069568,
        552128512,
    ),
    (
        "gpt3_mcore_te_tp1_pp4_vp1_resume_torch_dist",
        "h100",
        sizes(1, 4) | {"--num-layers-per-virtual-pipeline-stage": 1},
        2643299328,
        763220480,
    ),
    ("gpt3_mcore_te_tp2_pp2_cp2_nondeterministic", "a100", sizes(2, 2, 2) | NO_DROPOUT, 861328896, 431522304),
    (
        "gpt3_mcore_te_tp4_pp1_resume_torch_dist_dist_optimizer_overlap_grad_reduce",
        "h100",
        sizes(4, 1) | {"--use-distributed-optimizer": True},
        1042465280,
        299204096,
    ),
    (
        "gpt3_mcore_te_tp2_pp2_cross_entropy_loss_fusion",
        "gb200",
        sizes(2, 2) | {"--cross-entropy-loss-fusion": True},
        1838393856,
        514359808,
    ),
    ("gpt3_mcore_te_tp2_pp2_ep4_etp1_memory_speed", "h100", DEEPSEEK | UNFUSED | NO_DROPOUT, 60111630336, 6632031744),
]


@pytest.mark.parametrize(("case", "gpu", "arguments", "peak", "static"), CASES, ids=[c[0] for c in CASES])
def test_the_memory_of_one_step_is_what_megatron_measured(
    tmp_path: Path, case: str, gpu: str, arguments: dict[str, Any], peak: int, static: int
) -> None:
    """Activations, logits and gradients on the last stage: the peak less what is allocated between steps."""
    path = tmp_path / "golden.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "golden_file", "args_json", "mem_max_allocated_bytes", "mem_allocated_bytes"])
        writer.writerow([f"gpt/{case}", f"golden_values_dev_dgx_{gpu}.json", json.dumps(GPT | arguments), peak, static])
    (golden,) = load(path)
    assert golden.spec, golden.skipped
    last = stage_memory(golden.spec, golden.constants)[-1]
    assert last.step_gib == pytest.approx((golden.peak_bytes - golden.static_bytes) / GIB, rel=0.06)
