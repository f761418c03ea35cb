"""The one builder: a complete Spec becomes a ``nemo_run.Partial`` of NeMo's own ``llm.pretrain``.

Every choice a recipe makes is made here, visibly, one small function a part. What is particular to a model family
(its NeMo model class) is in that family's module; what is particular to a run is in the Spec.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import nemo_run as run
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.enums import AttnBackend
from nemo import lightning as nl
from nemo.collections import llm
from nemo.collections.llm.gpt.model.base import gpt_data_step
from nemo.utils.exp_manager import TimingCallback

from slipway import configs
from slipway.configs import Adapter, Call, Fsdp, Recompute, Refusal, Schedule, Spec
from slipway.configs.load import record_of
from slipway.configs.schema import Activation
from slipway.recipes.runtime.checkpoint import Checkpoint
from slipway.recipes.runtime.data import IndexedData, MockData, NullTokenizer
from slipway.recipes.runtime.record import DataClock, MLflow, RunRecord
from slipway.recipes.runtime.resume import Resume
from slipway.recipes.runtime.schedule import CosineSchedule
from slipway.recipes.runtime.seed import Seed
from slipway.recipes.runtime.source import source

_NEMO_MODEL = {
    "llama2": "LlamaModel",
    "llama3": "LlamaModel",
    "mixtral": "MixtralModel",
    "gpt3": "GPTModel",
    "nemotron4": "NemotronModel",
    "qwen3": "Qwen3Model",
    "deepseek": "DeepSeekModel",
}

# Facts whose NeMo field has the same name and the same meaning.
_SAME_NAME = (
    "num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels init_method_std "
    "layernorm_epsilon qk_layernorm share_embeddings_and_output_weights rotary_base add_bias_linear add_qkv_bias "
    "num_moe_experts moe_router_topk moe_ffn_hidden_size moe_shared_expert_intermediate_size moe_router_num_groups "
    "moe_router_group_topk q_lora_rank kv_lora_rank qk_head_dim qk_pos_emb_head_dim v_head_dim "
    "make_vocab_size_divisible_by"
).split()

# Facts that come with NeMo's class and are not passed on.
_MODEL_PLANNED_ONLY = (
    "gated_linear_unit activation_func normalization position_embedding_type pad_vocab window_size "
    "window_every hybrid_override_pattern "
    "mamba_num_heads mamba_head_dim mamba_state_dim mamba_num_groups moe_latent_size"
).split()


def build(spec: Spec, *, cpu: bool = False) -> run.Partial:
    """The recipe of ``spec`` as a ``run.Partial`` of ``llm.pretrain``.

    Args:
        spec: complete and legal; parallel sizes are taken as they are.
        cpu: train on CPU ranks over Gloo with the reference kernels, instead of on GPUs with Transformer Engine.
    """
    _refuse_what_is_only_planned(spec)
    return run.Partial(
        llm.pretrain,
        model=run.Config(
            getattr(llm, _NEMO_MODEL[spec.model.family]), config=_model(spec, cpu), tokenizer=_tokenizer(spec)
        ),
        data=_data(spec, cpu),
        trainer=_trainer(spec, cpu),
        log=_log(spec),
        resume=run.Config(Resume, resume_if_exists=spec.run.resume, resume_ignore_no_checkpoint=True),
        optim=_optim(spec),
    )


def _refuse_what_is_only_planned(spec: Spec) -> None:
    """Whatever the planner knows and this builder does not pass on: left out silently, another model or layout would
    be trained.
    """
    if spec.task.call is not Call.pretrain or spec.task.adapter is not Adapter.none:
        raise Refusal(
            f"task={spec.task.name} can be planned for but not trained by these recipes", "Use task=pretrain."
        )
    if spec.layout.flexible_pipeline:
        raise Refusal(
            "layout.flexible_pipeline can be planned for but not trained: NeMo 2.7.3 does not pass "
            "on Megatron-Core's pipeline layout",
            "Use layout.split_unevenly=true.",
        )
    if spec.layout.schedule in (Schedule.gpipe, Schedule.zero_bubble):
        raise Refusal(
            f"layout.schedule={spec.layout.schedule.value} can be planned for but not trained: "
            "Megatron-Core runs 1F1B and "
            "interleaved 1F1B only",
            "Use layout.schedule=auto.",
        )
    facts = configs.model(spec.model.name)
    for name in _MODEL_PLANNED_ONLY:
        ours, published = getattr(spec.model, name), getattr(facts, name)
        if ours != published:
            raise Refusal(
                f"model.{name}={getattr(ours, 'value', ours)} can be planned for but not trained: the "
                "recipe's NeMo class has "
                f"{getattr(published, 'value', published) or 'none'}",
                "Leave it out, or make a model of your own in configs/model.",
            )


def _dtype(spec: Spec) -> torch.dtype:
    return torch.float32 if spec.precision.gemm == "fp32" else torch.bfloat16


def nemo_config_class(spec: Spec) -> type:
    """The NeMo dataclass whose defaults are this model's published shape."""
    return getattr(llm, spec.model.nemo_config)


def _class_default(cls: type, name: str) -> Any:
    for f in dataclasses.fields(cls):
        if f.name == name:
            return f.default if f.default is not dataclasses.MISSING else None
    raise AttributeError(name)


def _model(spec: Spec, cpu: bool) -> run.Config:
    """The model's NeMo config: facts where they differ from the class, then parallelism, kernels and recompute."""
    config = run.Config(nemo_config_class(spec))
    _set_facts(config, spec)
    _set_parallelism(config, spec)
    if spec.model.is_moe:
        _set_experts(config, spec, cpu)
    _set_fusions(config, spec, cpu)
    if cpu:
        from slipway.recipes.reference.layers import layer_spec

        config.use_cpu_initialization = True
        config.transformer_layer_spec = layer_spec
    else:
        _set_kernels(config, spec)
    _set_recompute(config, spec)
    return config


def _set_facts(config: run.Config, spec: Spec) -> None:
    """The model's sizes and constants, each only where it differs from the class's own."""
    model = spec.model
    cls = nemo_config_class(spec)
    fields = {f.name for f in dataclasses.fields(cls)}
    for name in _SAME_NAME:
        fact = getattr(model, name)
        if name in fields and (fact or _class_default(cls, name)) and fact != _class_default(cls, name):
            setattr(config, name, fact)
    config.seq_length = spec.seq_length
    if _class_default(cls, "vocab_size") is not None and model.vocab_size != _class_default(cls, "vocab_size"):
        config.vocab_size = model.vocab_size  # families whose class names a vocabulary ignore the tokenizer's
    if "max_position_embeddings" in fields and _class_default(cls, "max_position_embeddings") is not None:
        config.max_position_embeddings = max(model.max_position_embeddings, spec.seq_length)
    if model.is_moe and "moe_layer_freq" in fields and model.has_dense_layers:
        config.moe_layer_freq = [int(model.layer_is_moe(i)) for i in range(model.num_layers)]
    if model.mtp_num_layers:
        config.mtp_num_layers = model.mtp_num_layers
        config.mtp_loss_scaling_factor = model.mtp_loss_scaling_factor
        config.data_step_fn = run.Partial(gpt_data_step, use_mtp=True)  # the last stage needs the tokens too


def _set_parallelism(config: run.Config, spec: Spec) -> None:
    layout = spec.layout
    if layout.pp > 1 and layout.vpp > 1:
        # Batched point-to-point with PP=2 and interleaving pairs the wrong messages and trains on wrong gradients
        # without an error (Megatron-LM issues 750 and 1450). Separate, overlapped sends are right at every size.
        config.overlap_p2p_comm = True
        config.batch_p2p_comm = False
    if spec.model.tied and layout.pp > 1:
        config.share_embeddings_and_output_weights = True


def _set_experts(config: run.Config, spec: Spec, cpu: bool) -> None:
    layout = spec.layout
    config.moe_token_dispatcher_type = layout.dispatcher.value
    if layout.moe_expert_capacity_factor:
        config.moe_expert_capacity_factor = layout.moe_expert_capacity_factor
    config.moe_pad_expert_input_to_capacity = layout.moe_pad_expert_input_to_capacity
    config.moe_grouped_gemm = not cpu
    config.moe_permute_fusion = not cpu
    # megatron-core 0.15 gives each context-parallel rank 1/CP of the auxiliary loss's gradient (fixed in 0.16).
    config.moe_aux_loss_coeff = spec.model.moe_aux_loss_coeff * layout.cp


def _set_fusions(config: run.Config, spec: Spec, cpu: bool) -> None:
    """On a GPU Transformer Engine has every fusion; on a CPU the reference has none."""
    config.apply_rope_fusion = not cpu
    config.gradient_accumulation_fusion = not cpu
    config.masked_softmax_fusion = not cpu
    config.bias_dropout_fusion = not cpu
    # Megatron-Core has no fused squared ReLU and refuses the flag with it
    config.bias_activation_fusion = not cpu and spec.model.activation_func is not Activation.squared_relu
    config.cross_entropy_loss_fusion = spec.layout.fused_cross_entropy and not cpu
    config.persist_layer_norm = not cpu


def _set_kernels(config: run.Config, spec: Spec) -> None:
    """What only a GPU has: the choice of kernels, communication overlap, CUDA graphs, offload."""
    layout = spec.layout
    config.cross_entropy_fusion_impl = "te"
    if layout.attention_backend != "auto":
        config.attention_backend = AttnBackend[layout.attention_backend.value]
    if layout.tp_comm_overlap:
        config.tp_comm_overlap = True
    if layout.cuda_graphs:
        config.enable_cuda_graph = True
        config.cudagraph_rng = True
    if layout.cpu_offload_layers:
        config.cpu_offloading = True
        config.cpu_offloading_num_layers = layout.cpu_offload_layers


def _set_recompute(config: run.Config, spec: Spec) -> None:
    layout = spec.layout
    if layout.recompute is Recompute.full:
        config.recompute_granularity = "full"
        config.recompute_method = layout.recompute_method.value or "uniform"
        config.recompute_num_layers = layout.recompute_num_layers or 1
    elif layout.recompute is Recompute.selective:
        config.recompute_granularity = "selective"
        if layout.recompute_modules:
            config.recompute_modules = list(layout.recompute_modules)


def _strategy(spec: Spec, cpu: bool) -> run.Config:
    layout = spec.layout
    kind = nl.MegatronStrategy
    if cpu:
        from slipway.recipes.reference.strategy import CpuStrategy

        kind = CpuStrategy
    strategy = run.Config(
        kind,
        tensor_model_parallel_size=layout.tp,
        sequence_parallel=layout.sequence_parallel,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.vpp if layout.vpp > 1 else None,
        pipeline_dtype=_dtype(spec) if layout.pp > 1 else None,
        context_parallel_size=layout.cp,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.etp or None,
        num_layers_in_first_pipeline_stage=layout.num_layers_in_first_pipeline_stage or None,
        num_layers_in_last_pipeline_stage=layout.num_layers_in_last_pipeline_stage or None,
        account_for_embedding_in_pipeline_split=layout.account_for_embedding,
        account_for_loss_in_pipeline_split=layout.account_for_loss,
        ddp=_ddp(spec),
        gradient_as_bucket_view=True,
        ckpt_async_save=spec.run.async_save,
        ckpt_parallel_load=True,
        # Without it a distributed-optimizer checkpoint can be loaded only under the TP and PP that wrote it.
        ckpt_optim_fully_reshardable=True,
    )
    if layout.fsdp is Fsdp.megatron:
        strategy.fsdp = "megatron"
        strategy.save_ckpt_format = "fsdp_dtensor"
        strategy.ckpt_optim_fully_reshardable = False  # a torch_dist option; fsdp_dtensor reshards by itself
    return strategy


def _ddp(spec: Spec) -> run.Config:
    layout = spec.layout
    ddp = run.Config(
        DistributedDataParallelConfig,
        use_distributed_optimizer=layout.distributed_optimizer,
        grad_reduce_in_fp32=spec.precision.grad_reduce_in_fp32,
        overlap_grad_reduce=layout.overlap_grad_reduce,
        overlap_param_gather=layout.overlap_param_gather and layout.distributed_optimizer,
        check_for_nan_in_grad=True,
        average_in_collective=True,
    )
    if layout.fsdp is Fsdp.megatron:
        ddp.use_megatron_fsdp = True
        ddp.data_parallel_sharding_strategy = "optim_grads_params"
        ddp.average_in_collective = False
        # Without the fusion, or with bf16 gradients, megatron-core 0.15 scales the wrong buffer.
        ddp.gradient_reduce_div_fusion = True
        ddp.grad_reduce_in_fp32 = True
    return ddp


def _precision(spec: Spec) -> run.Config:
    p = spec.precision
    if p.gemm == "fp4":
        raise Refusal(
            f"precision={p.name} can be planned but not trained: NeMo 2.7.3 with megatron-core 0.15.3 "
            "has no recipe for it",
            "Use precision=mxfp8 or bf16.",
        )
    plugin = run.Config(
        nl.MegatronMixedPrecision,
        precision="32" if p.gemm == "fp32" else "bf16-mixed",
        params_dtype=_dtype(spec),
        pipeline_dtype=_dtype(spec),
        autocast_enabled=False,
        grad_reduce_in_fp32=p.grad_reduce_in_fp32,
    )
    if p.gemm == "fp8":
        plugin.fp8 = p.fp8_format.value
        plugin.fp8_recipe = p.fp8_recipe.value
        plugin.fp8_param_gather = p.fp8_param_gather
        if p.fp8_recipe == "delayed":
            plugin.fp8_margin = 0
            plugin.fp8_amax_history_len = 1024
            plugin.fp8_amax_compute_algo = "max"
        if p.first_last_layers_bf16:
            plugin.first_last_layers_bf16 = True
            plugin.num_layers_at_start_in_bf16 = p.num_layers_at_start_in_bf16
            plugin.num_layers_at_end_in_bf16 = p.num_layers_at_end_in_bf16
    return plugin


def _optim(spec: Spec) -> run.Config:
    o = spec.optim
    if o.schedule != "cosine":
        raise Refusal(f"optim.schedule={o.schedule} is not built", "Use optim.schedule=cosine.")
    config = run.Config(
        OptimizerConfig,
        optimizer=o.optimizer.value,
        lr=o.lr,
        weight_decay=o.weight_decay,
        adam_beta1=o.adam_beta1,
        adam_beta2=o.adam_beta2,
        adam_eps=o.adam_eps,
        clip_grad=o.clip_grad,
        bf16=_dtype(spec) is torch.bfloat16,
        fp16=False,
        use_distributed_optimizer=spec.layout.distributed_optimizer,
    )
    if o.precision_aware:
        config.use_precision_aware_optimizer = True
        config.main_grads_dtype = torch.bfloat16
        config.main_params_dtype = torch.float32
        config.exp_avg_dtype = torch.bfloat16
        config.exp_avg_sq_dtype = torch.bfloat16
    if spec.layout.optimizer_cpu_offload:
        config.optimizer_cpu_offload = True
        config.optimizer_offload_fraction = 1.0
    schedule = run.Config(
        CosineSchedule,
        decay_steps=o.decay_steps or spec.run.max_steps,
        warmup_steps=o.warmup_steps,
        min_lr=o.min_lr,
        extend=spec.run.extend_schedule,
    )
    return run.Config(nl.MegatronOptimizerModule, config=config, lr_scheduler=schedule)


def _tokenizer(spec: Spec) -> run.Config:
    if spec.data.tokenizer:
        from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer

        return run.Config(AutoTokenizer, pretrained_model_name=spec.data.tokenizer)
    return run.Config(NullTokenizer, vocab_size=spec.model.vocab_size)


def _data(spec: Spec, cpu: bool) -> run.Config:
    common: dict[str, Any] = {
        "seq_length": spec.seq_length,
        "global_batch_size": spec.layout.gbs,
        "micro_batch_size": spec.layout.mbs,
        "tokenizer": _tokenizer(spec),
        "num_workers": 0 if cpu else spec.data.num_workers,
        "pin_memory": not cpu,
        "persistent_workers": not cpu and spec.data.num_workers > 0,
        "create_attention_mask": cpu,  # the reference attention is causal by itself; NeMo asks for a mask without TE
    }
    if spec.data.kind == "mock":
        return run.Config(MockData, **common)
    if not spec.data.paths:
        raise Refusal(
            "data=indexed names no data: data.paths is empty",
            "Make some with slipway data prepare and give data.paths=[PREFIX].",
        )
    return run.Config(
        IndexedData,
        paths=list(spec.data.paths),
        split=spec.data.split,
        seed=spec.run.seed,
        **common,
    )


def _trainer(spec: Spec, cpu: bool) -> run.Config:
    r = spec.run
    on_this_machine = cpu and spec.cluster.executor != "slurm"  # CPU ranks are not bound to the GPUs of a node
    return run.Config(
        nl.Trainer,
        accelerator="cpu" if cpu else "gpu",
        devices=spec.gpus if on_this_machine else min(spec.gpus, spec.gpus_per_node),
        num_nodes=1 if on_this_machine else spec.num_nodes,
        strategy=_strategy(spec, cpu),
        plugins=_precision(spec),
        callbacks=[
            run.Config(TimingCallback),
            run.Config(Seed, seed=spec.run.seed),
            run.Config(RunRecord, run_dir=str(run_dir(spec)), record=record_of(spec), source=source()),
        ],
        profiler=run.Config(DataClock),
        max_steps=r.max_steps,
        val_check_interval=r.val_check_interval or None,
        limit_val_batches=r.limit_val_batches if r.val_check_interval else 0,
        limit_test_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=r.log_every_n_steps,
        accumulate_grad_batches=1,
        use_distributed_sampler=False,
        enable_progress_bar=True,
    )


def run_dir(spec: Spec) -> Path:
    """Where a run's logs, events, record and checkpoints go."""
    return Path(spec.run.dir) / spec.name


def _log(spec: Spec) -> run.Config:
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

    checkpoint = run.Config(
        Checkpoint,
        every_minutes=float(spec.run.checkpoint_every_minutes),
        save_last=True,
        monitor="step",
        mode="max",
        save_top_k=spec.run.keep_checkpoints,
        every_n_train_steps=spec.run.checkpoint_every_n_steps,
        filename="{step}",
        save_optim_on_train_end=True,
        always_save_context=False,
        save_context_on_train_end=False,
    )
    return run.Config(
        nl.NeMoLogger,
        name=spec.name,
        log_dir=spec.run.dir,
        version="",
        use_datetime_version=False,
        ckpt=checkpoint,
        update_logger_directory=False,
        wandb=run.Config(WandbLogger, project=spec.run.wandb_project, name=spec.name, save_dir=str(run_dir(spec)))
        if spec.run.wandb_project
        else None,
        extra_loggers=[
            run.Config(
                MLflow,
                experiment_name=spec.run.mlflow_experiment,
                run_name=spec.name,
                save_dir=f"{spec.run.dir}/mlruns",
            )
        ]
        if spec.run.mlflow_experiment
        else [],
        tensorboard=run.Config(TensorBoardLogger, save_dir=str(run_dir(spec) / "tensorboard"), name="", version=""),
    )
