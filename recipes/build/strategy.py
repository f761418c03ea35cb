"""How the model is spread over the ranks: NeMo's Megatron strategy, and Megatron-Core's data parallelism."""

from __future__ import annotations

import nemo_run as run
from megatron.core.distributed import DistributedDataParallelConfig
from nemo import lightning as nl

from slipway.configs import Spec
from slipway.planner.levers import aligns_param_gather, bucket_size
from slipway.recipes.build.precision import dtype


def strategy(spec: Spec, *, cpu: bool) -> run.Config:
    """The configuration of :class:`nemo.lightning.MegatronStrategy`, or of its version for CPU ranks."""
    layout = spec.layout
    kind = nl.MegatronStrategy
    if cpu:
        from slipway.recipes.reference.strategy import CpuStrategy

        kind = CpuStrategy
    return run.Config(
        kind,
        tensor_model_parallel_size=layout.tp,
        sequence_parallel=layout.sequence_parallel,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.vpp if layout.vpp > 1 else None,
        pipeline_dtype=dtype(spec) if layout.pp > 1 else None,
        context_parallel_size=layout.cp,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.etp or None,
        num_layers_in_first_pipeline_stage=layout.num_layers_in_first_pipeline_stage or None,
        num_layers_in_last_pipeline_stage=layout.num_layers_in_last_pipeline_stage or None,
        pipeline_model_parallel_layout=layout.pipeline_layout or None,
        account_for_embedding_in_pipeline_split=layout.account_for_embedding,
        account_for_loss_in_pipeline_split=layout.account_for_loss,
        use_te_rng_tracker=layout.cuda_graphs and not cpu,
        num_distributed_optimizer_instances=spec.levers.optimizer_instances,
        use_sharp=spec.levers.sharp,
        ddp=_data_parallelism(spec),
        gradient_as_bucket_view=True,
        ckpt_async_save=spec.run.async_save,
        ckpt_parallel_load=True,
        # Otherwise a checkpoint of the distributed optimizer can be loaded only with the TP and PP that wrote it.
        ckpt_optim_fully_reshardable=True,
    )


def _data_parallelism(spec: Spec) -> run.Config:
    layout, levers = spec.layout, spec.levers
    return run.Config(
        DistributedDataParallelConfig,
        use_distributed_optimizer=layout.distributed_optimizer,
        grad_reduce_in_fp32=spec.precision.grad_reduce_in_fp32,
        overlap_grad_reduce=layout.overlap_grad_reduce,
        overlap_param_gather=layout.overlap_param_gather and layout.distributed_optimizer,
        bucket_size=bucket_size(spec),
        align_param_gather=aligns_param_gather(spec),
        check_for_nan_in_grad=levers.check_for_nan,
        average_in_collective=not spec.task.finetunes,  # the loss per token divides by all tokens instead
    )
