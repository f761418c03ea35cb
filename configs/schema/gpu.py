"""One accelerator: facts of its datasheet."""

from __future__ import annotations

from dataclasses import dataclass

from slipway.configs.schema.legal import Choice, NonNegative, Positive, Size

HOPPER, BLACKWELL = 90, 100
"""The compute capability of the first GPU of each architecture, as ``Gpu.compute_capability`` has it."""


class Architecture(Choice):
    """NVIDIA's generations of GPUs that have bf16."""

    ampere = "ampere"
    ada = "ada"
    hopper = "hopper"
    blackwell = "blackwell"
    blackwell_ultra = "blackwell_ultra"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One accelerator. Rates are dense peaks of the datasheet; GB is 10^9 bytes and GiB is 2^30 bytes."""

    name: str
    """Name of the file in configs/gpu."""

    device_name: str = ""
    """The name that nvidia-smi and ``torch.cuda.get_device_name`` report."""

    architecture: Architecture
    """NVIDIA's name of its generation."""

    compute_capability: Size
    """CUDA compute capability without its dot: 80, 90, 100, 103."""

    source: str = ""
    """Where the facts come from."""

    tf32_tflops: Positive
    """Dense peak of TF32 matrix multiplication, TFLOP/s; fp32 runs use it."""

    bf16_tflops: Positive
    """Dense peak of bf16 matrix multiplication, TFLOP/s."""

    fp8_tflops: NonNegative = 0.0
    """Dense peak of fp8 matrix multiplication, TFLOP/s; 0: the GPU has no fp8."""

    fp4_tflops: NonNegative = 0.0
    """Dense peak of fp4 matrix multiplication, TFLOP/s; 0: the GPU has no fp4."""

    memory_gb: Positive
    """Marketed memory, GB."""

    multiprocessors: Size
    """Streaming multiprocessors."""

    usable_memory_gib: Positive
    """Total memory that CUDA reports, GiB."""

    memory_gb_per_s: Positive
    """Memory bandwidth, GB/s."""

    nvlink_gb_per_s: Positive
    """NVLink bandwidth per GPU in one direction, GB/s."""

    nvlink_domain: Size
    """GPUs that reach each other over NVLink."""

    nic_gb_per_s: Positive
    """Network bandwidth per GPU in one direction, between NVLink domains, GB/s."""

    gpus_per_node: Size = 8
    """GPUs of one machine, where the cluster does not state it."""

    host_memory_gib_per_gpu: NonNegative = 256.0
    """Host memory per GPU, GiB; the limit of optimizer offloading."""

    host_link_gb_per_s: Positive
    """Bandwidth to host memory per GPU in one direction, GB/s."""

    power_w: NonNegative = 0.0
    """Power of the GPU at full load, W; 0: not stated."""

    system_power_w: NonNegative = 0.0
    """The GPU's share of the power of its vendor's system (node or rack) at full load, W; 0: not stated."""

    calibrated_as: str = ""
    """The GPU whose fitted constants (configs/calibration) apply while none are fitted to this one; empty: defaults."""
