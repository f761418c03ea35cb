"""What a run does for speed that changes neither the model, nor its layout, nor the numbers that it computes."""

from __future__ import annotations

from dataclasses import dataclass

from slipway.configs.schema.legal import Choice, Count, Size


class CudaGraphScope(Choice):
    """What one CUDA graph captures, with ``layout.cuda_graphs``: a layer, the attention of a layer, or a step."""

    layer = "layer"
    attention = "attention"
    full_iteration = "full_iteration"


@dataclass(frozen=True, kw_only=True)
class Levers:
    """Overlap, kernels and the environment of a rank. ``slipway show NAME --levers`` compares them with NVIDIA's."""

    wgrad_deferral_limit: Count = 0
    """Micro-batches whose weight gradient of the output layer waits for the end of the pipeline, where the last stage
    is idle; 0: none (Megatron-Core's ``defer_embedding_wgrad_compute``).
    """

    bucket_size: Count = 128 * 1024 * 1024
    """Parameters whose gradients are reduced together; 0: Megatron-Core's own, 1 M for each data-parallel rank, at
    least 40 M.
    """

    align_param_gather: bool | None = None
    """Whether all pipeline stages gather their parameters at the same time; unset: with a virtual pipeline."""

    overlap_param_gather_with_optimizer_step: bool = False
    """Whether the first parameters are gathered while the optimizer still updates the others."""

    optimizer_instances: Size = 1
    """Copies of the sharded optimizer states: each is sharded over a part of the data-parallel ranks, so that gathers
    stay within it.
    """

    sharp: bool = False
    """Whether the switches of the InfiniBand network reduce the gradients (SHARP)."""

    check_for_nan: bool = True
    """Whether each bucket of gradients is checked for NaN before it is reduced."""

    moe_router_fusion: bool = False
    """Whether the router's softmax, selection and load-balancing loss are fused kernels of Transformer Engine."""

    expert_comm_overlap: bool = False
    """Whether the exchange of tokens between experts hides under another micro-batch's compute."""

    delay_wgrad: bool = False
    """With ``expert_comm_overlap``: whether weight gradients are computed under the exchange too."""

    cuda_graph_scope: CudaGraphScope = CudaGraphScope.layer
    """What one CUDA graph captures, with ``layout.cuda_graphs``."""

    gc_interval: Count = 100
    """Steps between two runs of Python's garbage collector, on all ranks at once; 0: each rank whenever it likes."""

    numa_binding: bool = True
    """Whether each rank runs on the processors that are closest to its GPU."""

    layernorm_sm_margin: Count = 16
    """Multiprocessors that the kernels of norms leave to communication."""

    nvls: bool = False
    """Whether NCCL reduces in the NVLink switches (NVLink SHARP), which takes memory."""

    p2p_chunk_bytes: Count = 2 * 1024 * 1024
    """Bytes of a chunk that a pipeline stage sends over the network; 0: NCCL's own."""
