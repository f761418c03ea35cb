"""Our keys and the paths of Megatron-Bridge's ConfigContainer, for reading and for writing.

Source: megatron-bridge 0.3.1, training/config.py, training/mixed_precision.py and models/gpt_provider.py.
"""

from __future__ import annotations

MODEL = {
    name: f"model.{name}"
    for name in (
        "num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels vocab_size "
        "softmax_type gated_linear_unit normalization layernorm_epsilon add_bias_linear add_qkv_bias qk_layernorm "
        "qk_l2_norm share_embeddings_and_output_weights position_embedding_type rotary_base "
        "make_vocab_size_divisible_by init_method_std rotary_percent hidden_dropout attention_dropout "
        "mtp_num_layers mtp_loss_scaling_factor"
    ).split()
}
"""Field of a model -> path."""

EXPERTS = {
    name: f"model.{name}"
    for name in (
        "num_moe_experts moe_router_topk moe_ffn_hidden_size moe_shared_expert_intermediate_size "
        "moe_router_load_balancing_type moe_aux_loss_coeff moe_router_enable_expert_bias moe_router_bias_update_rate "
        "moe_router_num_groups moe_router_group_topk moe_router_topk_scaling_factor"
    ).split()
}
LATENT = {
    name: f"model.{name}"
    for name in ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")
}
LAYOUT = {
    "tp": "model.tensor_model_parallel_size",
    "pp": "model.pipeline_model_parallel_size",
    "vpp": "model.virtual_pipeline_model_parallel_size",
    "cp": "model.context_parallel_size",
    "ep": "model.expert_model_parallel_size",
    "etp": "model.expert_tensor_parallel_size",
    "sp": "model.sequence_parallel",
    "mbs": "train.micro_batch_size",
    "gbs": "train.global_batch_size",
    "seq_length": "model.seq_length",
    "recompute": "model.recompute_granularity",
    "recompute_modules": "model.recompute_modules",
    "recompute_method": "model.recompute_method",
    "recompute_num_layers": "model.recompute_num_layers",
    "distributed_optimizer": "ddp.use_distributed_optimizer",
    "overlap_grad_reduce": "ddp.overlap_grad_reduce",
    "overlap_param_gather": "ddp.overlap_param_gather",
    "tp_comm_overlap": "comm_overlap.tp_comm_overlap",
    "dispatcher": "model.moe_token_dispatcher_type",
    "moe_expert_capacity_factor": "model.moe_expert_capacity_factor",
    "moe_pad_expert_input_to_capacity": "model.moe_pad_expert_input_to_capacity",
    "num_layers_in_first_pipeline_stage": "model.num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage": "model.num_layers_in_last_pipeline_stage",
    "account_for_embedding": "model.account_for_embedding_in_pipeline_split",
    "account_for_loss": "model.account_for_loss_in_pipeline_split",
    "pipeline_layout": "model.pipeline_model_parallel_layout",
    "optimizer_cpu_offload": "optimizer.optimizer_cpu_offload",
    "cuda_graphs": "model.cuda_graph_impl",
    "fused_cross_entropy": "model.cross_entropy_loss_fusion",
    "attention_backend": "model.attention_backend",
    "fsdp": "ddp.use_megatron_fsdp",
}
"""Field of a layout -> path."""

OPTIMIZER = {
    name: f"optimizer.{name}"
    for name in ("lr", "min_lr", "weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "clip_grad")
}
MIXED = {
    "bf16_mixed": "bf16",
    "fp16_mixed": "bf16",
    "bf16_with_fp8_delayed_scaling_mixed": "fp8_delayed",
    "bf16_with_fp8_current_scaling_mixed": "fp8_current",
    "bf16_with_fp8_subchannel_scaling_mixed": "fp8_blockwise",
    "bf16_with_mxfp8_mixed": "mxfp8",
    "bf16_with_nvfp4_mixed": "nvfp4",
    "nemotron_h_bf16_with_fp8_current_scaling_mixed": "fp8_current",
    "nanov2_bf16_with_fp8_current_scaling_mixed": "fp8_current",
}
"""Names of Megatron-Bridge's mixed precision -> ours."""
RECIPES = {"tensorwise": "fp8_current", "blockwise": "fp8_blockwise", "mxfp8": "mxfp8", "delayed": "fp8_delayed"}
STYLES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "inverse-square-root": "inverse_sqrt",
    "WSD": "wsd",
}
PATHS = (
    {f"layout.{name}": path for name, path in LAYOUT.items()}
    | {f"model.{name}": path for name, path in (MODEL | EXPERTS).items()}
    | {
        "precision.fp8_param_gather": "mixed_precision.fp8_param_gather",
        "precision.grad_reduce_in_fp32": "mixed_precision.grad_reduce_in_fp32",
        "optim.precision_aware": "optimizer.use_precision_aware_optimizer",
    }
)
"""Our key -> path, as messages name it."""
