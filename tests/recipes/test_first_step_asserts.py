"""What the stack asserts between the start of a run on GPUs and its first step, and what of ours covers it.

The list was read from the code and holds what our switches reach; it is not complete. Each line is where the stack
objects, words by which to find it there, and the rule, or the test, that keeps a recipe from it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from slipway.planner.rules import RULES

CONFIG = "megatron/core/transformer/transformer_config.py"
DISPATCHER = "megatron/core/transformer/moe/token_dispatcher.py"
GRAPHS = "megatron/core/transformer/cuda_graphs.py"
NEMO_GPT = "nemo/collections/llm/gpt/model/base.py"
OVERLAP = "nemo/lightning/pytorch/callbacks/megatron_comm_overlap.py"
SET = "test_what_the_first_step_asserts_is_set"
ALLOCATED = "test_graphs_are_captured_without_expandable_segments"
VALIDATED = "test_each_switch_that_is_legal_is_accepted_by_megatron_core"
KERNELS = "test_kernels_that_an_image_lacks_are_named_before_the_first_step"
PRECISIONS = "test_each_precision_is_that_of_nemo_except_where_it_says_so"

ASSERTS = [
    ("megatron/core/utils.py", "ExperimentalNotEnabledError(f", SET),
    (NEMO_GPT, "from nemo.collections.nlp.models", SET),
    (NEMO_GPT, "Transformer engine's RNG tracker is required for cudagraphs", SET),
    (GRAPHS, "RNG tracker does not support cudagraphs!", SET),
    (GRAPHS, "expandable_segments:True may not be safe", ALLOCATED),
    (CONFIG, "Do not use enable_cuda_graph or external_cuda_graph", SET),
    (CONFIG, "CUDA graphs not supported with activation recomputation.", "cuda-graphs"),
    (CONFIG, "CUDA graphs not supported with CPU offloading.", "cuda-graphs"),
    (CONFIG, "apply_rope_fusion for MLA only works with YARN RoPE", VALIDATED),
    (CONFIG, "apply_rope_fusion is not available", VALIDATED),
    (CONFIG, "fused permutation is not available", VALIDATED),
    (CONFIG, "moe_shared_expert_overlap only works with", SET),
    (CONFIG, "Flex token dispatcher does not support moe_pad", "capacity-pad"),
    (DISPATCHER, "Flex token dispatcher requires TPxEP > 1", "flex-dispatcher"),
    (DISPATCHER, "DeepEP is not enabled", SET),
    (DISPATCHER, "DeepEP is not installed", KERNELS),
    ("megatron/core/utils.py", "import fused_weight_gradient_mlp_cuda", KERNELS),
    ("megatron/core/model_parallel_config.py", "Cannot defer embedding wgrad compute when pipeline", "wgrad-deferral"),
    ("megatron/core/parallel_state.py", "should be divisible by partial DistOpt shard", "optimizer-instances"),
    (DISPATCHER, "DeepEP only supports float32 probs", SET),
    (OVERLAP, "Disabling tensor parallel communication overlap due to TP size < 2", "tp-comm-overlap"),
    (OVERLAP, "due to sequence_parallel=False", "tp-comm-overlap"),
    ("megatron/core/extensions/transformer_engine.py", "Disabling TP communication overlap", "tp-comm-overlap"),
    (
        "megatron/core/distributed/distributed_data_parallel_config.py",
        "Reuse grad buffer only when keeping params in MXFP8",
        PRECISIONS,
    ),
]


@pytest.mark.nemo
@pytest.mark.parametrize(("file", "words", "cover"), ASSERTS)
def test_the_stack_still_asserts_it_and_something_covers_it(file: str, words: str, cover: str) -> None:
    top = importlib.util.find_spec(file.partition("/")[0])
    assert top is not None
    assert top.submodule_search_locations
    installed = Path(next(iter(top.submodule_search_locations))).parent / file
    assert words in installed.read_text()
    tests = Path(__file__).with_name("test_gpu_path.py").read_text()
    assert cover in {rule.id for rule in RULES} or f"def {cover}(" in tests
