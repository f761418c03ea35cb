"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import nemo_run as run
import torch
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl

from slipway.configs import Refusal, Spec
from slipway.recipes.build.precision import dtype
from slipway.recipes.runtime.schedule import CosineSchedule


def optimizer_module(spec: Spec) -> run.Config:
    """The configuration of :class:`nemo.lightning.MegatronOptimizerModule`.

    Raises:
        Refusal: the schedule is not built.
    """
    optim = spec.optim
    if optim.schedule != "cosine":
        raise Refusal(f"optim.schedule={optim.schedule} is not built", "Use optim.schedule=cosine.")
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
    )
    if optim.precision_aware:
        config.use_precision_aware_optimizer = True
        config.main_grads_dtype = torch.bfloat16
        config.main_params_dtype = torch.float32
        config.exp_avg_dtype = torch.bfloat16
        config.exp_avg_sq_dtype = torch.bfloat16
    if spec.layout.optimizer_cpu_offload:
        config.optimizer_cpu_offload = True
        config.optimizer_offload_fraction = 1.0  # all states
    schedule = run.Config(
        CosineSchedule,
        decay_steps=optim.decay_steps or spec.run.max_steps,
        warmup_steps=optim.warmup_steps,
        min_lr=optim.min_lr,
        extend=spec.run.extend_schedule,
    )
    return run.Config(nl.MegatronOptimizerModule, config=config, lr_scheduler=schedule)
