"""The planner's fitted constants for one GPU under one software generation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The planner's fitted constants. docs/planner.md describes the fit and its spread.

    Efficiencies are fractions of the datasheet's dense peak or bandwidth; ``_us`` is microseconds.
    """

    name: str
    """GPU and software generation, for example h100/nemo-25.11."""

    gemm_efficiency: float = 0.75
    """Large bf16 matrix multiplications, power throttling included."""

    fp8_gemm_efficiency: float = 0.60
    """Large fp8 matrix multiplications with one scale per tensor."""

    mxfp8_gemm_efficiency: float = 0.55
    """Block-scaled fp8 matrix multiplications, with the cast of the second direction."""

    fp4_gemm_efficiency: float = 0.45
    """Large fp4 matrix multiplications."""

    attention_efficiency: float = 0.50
    """Fused attention, as a fraction of the bf16 peak."""

    flash_attention: bool = True
    """False: attention scores are written to memory, as before FlashAttention."""

    dropout: bool = False
    """GPT-3-era recipes: dropout masks are written, stored and read."""

    mla_passes: float = 5.0
    """Reads and writes of the queries, keys and values of multi-latent attention outside its GEMMs; 2.2 if fused."""

    separate_norms: bool = False
    """True: each norm is its own module. False: it is part of the linear layer that it feeds (Transformer Engine)."""

    logits_bytes: float = 0.0
    """Bytes per logit at the loss, where a software stack differs; 0: as the layout's loss implies."""

    memory_efficiency: float = 0.80
    """Streaming kernels, as a fraction of the memory bandwidth."""

    elementwise_passes: float = 1.5
    """Bytes that elementwise kernels move, as a multiple of the fused minimum."""

    gemm_tail: float = 0.5
    """Share of the idle multiprocessors in the last wave of a GEMM's tiles that costs time."""

    gemm_bytes_exposed: float = 0.5
    """Share of a GEMM's operand traffic that its arithmetic does not hide."""

    kernel_us: float = 3.0
    """Fixed time of a kernel on the GPU: ramp, tail and gap."""

    launch_us: float = 5.0
    """CPU time to launch a kernel, which bounds small layers; 0 under CUDA graphs."""

    layer_host_us: float = 0.0
    """CPU time of one pass of a layer besides its launches: the Python code of the layer."""

    moe_host_us: float = 500.0
    """CPU time of one pass of a dropless expert layer: the host waits for token counts; 0 under CUDA graphs."""

    nvlink_efficiency: float = 0.70
    """Collectives over NVLink, as a fraction of its bandwidth."""

    network_efficiency: float = 0.70
    """Collectives between NVLink domains, as a fraction of the network bandwidth."""

    collective_us: float = 15.0
    """Latency of a collective."""

    tp_overlap: float = 0.0
    """Share of tensor-parallel communication that matrix multiplications hide."""

    user_buffers: bool = False
    """Whether the runs that it is fitted to overlapped it through Transformer Engine's user buffers."""

    dp_overlap: float = 0.8
    """Share of a micro-batch's compute that can hide data-parallel communication; with FSDP, the share that is hidden.
    """

    expert_overlap: float = 0.0
    """Share of the experts' all-to-all that is hidden."""

    expert_imbalance: float = 1.0
    """Tokens of the busiest expert-parallel rank, as a multiple of the mean."""

    jitter_per_doubling: float = 0.0
    """Slowdown per doubling of the nodes: stragglers and network contention."""

    step_overhead_s: float = 0.02
    """Seconds per step outside the model: data, logging, optimizer launch, host synchronization."""

    overlapped: bool = True
    """Whether gradients are reduced during the backward pass and parameters gathered during the forward pass."""

    extra_memory_gib: float = 0.0
    """Memory that the planner does not model: communication buckets, older contexts."""

    spread: float = 0.15
    """Standard deviation of ln(measured / predicted) under cross-validation."""

    source: str = ""
    """The measurements that the constants were fitted to."""
