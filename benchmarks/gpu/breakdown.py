"""Where a profiled step spends its time: kernels by kind, idle time, and the slowest kernels."""

from __future__ import annotations

import re
from typing import Any

# The first kind whose pattern matches the name of a kernel (on a CPU: of an operation). Everything else is elementwise:
# norms, activations, rotary positions, casts to fp8, copies. The logits' matrix product has no name of its own: it is
# gemm here and loss in the planner.
KINDS = (
    ("communication", r"nccl|gloo|all_?reduce|all_?gather|reduce_?scatter|c10d"),
    ("attention", r"fmha|flash|sdpa|scaled_dot_product|attention|fused_attn"),
    ("optimizer", r"adam|multi_?tensor|optimizer|l2_?norm|unscale|lpnorm"),
    ("loss", r"cross_entropy|softmax|nll|element_mul_kernel"),
    ("gemm", r"gemm|nvjet|cutlass|cublas|xmma|matmul|::mm$|::addmm|::bmm|::baddbmm|::linear"),
)
# Label: the kinds above, and the terms of the planner's breakdown that they are compared with.
PLANNED = {
    "gemm and loss": (("gemm", "loss"), ("gemm", "loss")),
    "attention": (("attention",), ("attention",)),
    "elementwise": (("elementwise",), ("elementwise",)),
    "optimizer": (("optimizer",), ("optimizer",)),
    "idle": (("idle",), ("launch", "other")),
}


def kind_of(name: str) -> str:
    """The kind of a kernel or operation, by its name."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), "elementwise")


def _kernels(profiler: Any) -> list[tuple[str, float]]:
    """(name, seconds) of every kernel; without a GPU, of every operation, excluding operations inside it."""
    from torch.autograd import DeviceType

    averages = profiler.key_averages()
    on_gpu = [(e.key, e.self_device_time_total * 1e-6) for e in averages if e.device_type is DeviceType.CUDA]
    return on_gpu or [(e.key, e.self_cpu_time_total * 1e-6) for e in averages]


def by_kind(profiler: Any, step_s: float) -> dict[str, float]:
    """Seconds of the step by kind; ``idle`` is what no kernel fills (0 where overlapping kernels exceed the step)."""
    out: dict[str, float] = {}
    for name, seconds in _kernels(profiler):
        out[kind_of(name)] = out.get(kind_of(name), 0.0) + seconds
    return out | {"idle": max(0.0, step_s - sum(out.values()))}


def longest(profiler: Any, count: int = 10) -> list[tuple[str, str, float]]:
    """(kernel, kind, seconds) of those with the largest total time."""
    ranked = sorted(_kernels(profiler), key=lambda k: -k[1])[:count]
    return [(name, kind_of(name), seconds) for name, seconds in ranked]
