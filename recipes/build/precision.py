"""The mixed-precision plugin."""

from __future__ import annotations

import nemo_run as run
import torch
from nemo import lightning as nl

from slipway.configs import Precision, Refusal, Spec
from slipway.configs.schema import Gemm

# Delayed scaling of Transformer Engine (DelayedScaling): the scale comes from the largest of the last 1,024 amax
# values, without a margin. These are also NeMo's values.
_AMAX_HISTORY_LENGTH = 1024
_AMAX_MARGIN = 0


# What NeMo's plugin calls the precision of a run whose matrix products take operands of this format: fp8 is set beside
# bf16. A format that is not here can be planned but not trained.
_PLUGIN_PRECISION = {Gemm.fp32: "32", Gemm.bf16: "bf16-mixed", Gemm.fp8: "bf16-mixed"}


def dtype(spec: Spec) -> torch.dtype:
    """The type of the parameters and of what pipeline stages send."""
    return torch.float32 if spec.precision.gemm is Gemm.fp32 else torch.bfloat16


def precision_plugin(spec: Spec) -> run.Config:
    """The configuration of :class:`nemo.lightning.MegatronMixedPrecision`.

    Raises:
        Refusal: NeMo has no recipe for the format.
    """
    precision = spec.precision
    if precision.gemm not in _PLUGIN_PRECISION:
        raise Refusal(
            f"precision={precision.name} can be planned but not trained: NeMo 2.7.3 with megatron-core 0.15.3 "
            "has no recipe for it",
            "Use precision=mxfp8 or bf16.",
        )
    plugin = run.Config(
        nl.MegatronMixedPrecision,
        precision=_PLUGIN_PRECISION[precision.gemm],
        params_dtype=dtype(spec),
        pipeline_dtype=dtype(spec),
        autocast_enabled=False,
        grad_reduce_in_fp32=precision.grad_reduce_in_fp32,
    )
    if precision.gemm is Gemm.fp8:
        _set_fp8(plugin, precision)
    return plugin


def _set_fp8(plugin: run.Config, precision: Precision) -> None:
    plugin.fp8 = precision.fp8_format.value
    plugin.fp8_recipe = precision.fp8_recipe.value
    plugin.fp8_param_gather = precision.fp8_param_gather
    if precision.fp8_recipe == "mxfp8" and precision.fp8_param_gather:
        # Megatron-Core cannot place mxfp8 weights in a buffer: they are gathered in bf16 through that of the gradients.
        plugin.reuse_grad_buf_for_mxfp8_param_ag = True
    if precision.fp8_recipe == "delayed":
        plugin.fp8_margin = _AMAX_MARGIN
        plugin.fp8_amax_history_len = _AMAX_HISTORY_LENGTH
        plugin.fp8_amax_compute_algo = "max"
    if precision.first_last_layers_bf16:
        plugin.first_last_layers_bf16 = True
        plugin.num_layers_at_start_in_bf16 = precision.num_layers_at_start_in_bf16
        plugin.num_layers_at_end_in_bf16 = precision.num_layers_at_end_in_bf16
