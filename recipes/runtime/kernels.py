"""The packages of NVIDIA's images whose kernels a run calls in its first steps, found without importing them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from slipway.configs import Dispatcher, Refusal, Spec
from slipway.planner.levers import deferred_micro_batches


@dataclass(frozen=True)
class Kernel:
    """A module that a run needs. ``without`` is the override of the run that does not."""

    module: str
    package: str
    needed_by: str
    without: str

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


def kernels_of(spec: Spec) -> Iterator[Kernel]:
    """What ``spec`` needs besides Transformer Engine, which NeMo itself asks for."""
    if spec.model.is_moe and spec.dispatcher is Dispatcher.flex:
        given = spec.layout.dispatcher.value
        yield Kernel("deep_ep", "DeepEP", f"layout.dispatcher={given}", "layout.dispatcher=alltoall")
    if deferred_micro_batches(spec):
        limit = spec.levers.wgrad_deferral_limit
        lever = f"levers.wgrad_deferral_limit={limit}"
        yield Kernel("fused_weight_gradient_mlp_cuda", "Apex", lever, "levers.wgrad_deferral_limit=0")


def require_kernels(spec: Spec) -> None:
    """Require that this environment has every kernel of a run on GPUs.

    Raises:
        Refusal: the first package that is missing, what needs it, and the run that does not.
    """
    for kernel in kernels_of(spec):
        if not kernel.installed:
            raise Refusal(
                f"{kernel.needed_by} needs {kernel.package} (the module {kernel.module}), which is not installed here",
                f"Use {kernel.without}, or an image that has it.",
            )
