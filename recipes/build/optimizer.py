"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import nemo_run as run
import torch
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl

from slipway.configs import Spec
from slipway.configs.schedule import stage_lines, warmup_line
from slipway.configs.schema import Moments
from slipway.recipes.build.precision import dtype
from slipway.recipes.runtime.schedule import StagedSchedule

MOMENTS = {Moments.fp32: torch.float32, Moments.bf16: torch.bfloat16}
"""The type of each kind of moments."""


def optimizer_module(spec: Spec) -> run.Config:
    """The configuration of :class:`nemo.lightning.MegatronOptimizerModule`."""
    optim = spec.optim
    config = run.Config(
        OptimizerConfig,
        optimizer=optim.optimizer.value,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.adam_beta1,
        adam_beta2=optim.adam_beta2,
        adam_eps=optim.adam_eps,
        clip_grad=optim.clip_grad,
        bf16=dtype(spec) is torch.bfloat16,
        fp16=False,
        use_distributed_optimizer=spec.layout.distributed_optimizer,
        overlap_param_gather_with_optimizer_step=spec.levers.overlap_param_gather_with_optimizer_step,
    )
    if optim.precision_aware:
        config.use_precision_aware_optimizer = True
        # megatron-core 0.15 does not convert gradients to this type: they keep the type in which they are reduced.
        config.main_grads_dtype = torch.float32 if spec.precision.grad_reduce_in_fp32 else torch.bfloat16
        config.main_params_dtype = torch.float32
        config.exp_avg_dtype = config.exp_avg_sq_dtype = MOMENTS[optim.moments]
    if spec.layout.optimizer_cpu_offload:
        config.optimizer_cpu_offload = True
        config.optimizer_offload_fraction = 1.0  # all states
    schedule = run.Config(
        StagedSchedule,
        stages=stage_lines(optim, spec.run.max_steps),
        warmup=warmup_line(optim),
        extend=spec.run.extend_schedule,
    )
    return run.Config(nl.MegatronOptimizerModule, config=config, lr_scheduler=schedule)
