"""The model: NeMo's class of its family, and the configuration of its sizes, parallelism, kernels and recompute."""

from __future__ import annotations

import dataclasses
from typing import Any

import nemo_run as run
from megatron.core.fusions.fused_bias_geglu import quick_gelu
from megatron.core.transformer.enums import AttnBackend
from nemo.collections import llm
from nemo.collections.llm.gpt.model.base import gpt_data_step
from torch.nn import functional

from slipway.configs import Dispatcher, Layout, Recompute, Spec
from slipway.configs.schema import LoadBalancing, RopeScaling
from slipway.recipes.family import family

# Facts whose field in NeMo's configuration has the same name and the same meaning.
SAME_NAME = (
    "num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels init_method_std "
    "layernorm_epsilon qk_layernorm share_embeddings_and_output_weights rotary_percent add_bias_linear add_qkv_bias "
    "num_moe_experts moe_router_topk moe_ffn_hidden_size moe_shared_expert_intermediate_size moe_router_num_groups "
    "moe_router_group_topk moe_router_topk_scaling_factor q_lora_rank kv_lora_rank qk_head_dim qk_pos_emb_head_dim "
    "v_head_dim make_vocab_size_divisible_by moe_router_enable_expert_bias "
    "moe_router_bias_update_rate moe_router_load_balancing_type hidden_dropout attention_dropout "
    "query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping"
).split()

FUSED_ACTIVATIONS = (functional.gelu, functional.silu, quick_gelu)  # those that Megatron-Core joins with the bias
# of NeMo's Llama 3.1, DeepSeek and GPT-OSS
ROPE_FACTORS = ("scale_factor", "rotary_scaling_factor", "yarn_rotary_scaling_factor")


def nemo_config_class(spec: Spec) -> type:
    """NeMo's configuration class of the model, whose defaults are the published sizes."""
    return getattr(llm, spec.model.nemo_config)


def model_module(spec: Spec, *, cpu: bool, tokenizer: run.Config) -> run.Config:
    """The configuration of the model's Lightning module.

    Raises:
        Refusal: no recipe trains the model's family.
    """
    kind = getattr(llm, family(spec.model.family).nemo_model)
    return run.Config(kind, config=_model_config(spec, cpu), tokenizer=tokenizer)


def _model_config(spec: Spec, cpu: bool) -> run.Config:
    config = run.Config(nemo_config_class(spec))
    _set_sizes(config, spec)
    _set_parallelism(config, spec)
    if spec.model.is_moe:
        _set_experts(config, spec, cpu)
    _set_fusions(config, spec, cpu)
    # NeMo's layers of one Transformer Engine module each, the default of its GPT-3, import a package that it removed.
    config.use_transformer_engine_full_layer_spec = False
    if spec.task.finetunes:
        # Sequences have different numbers of answer tokens: averaged by micro-batch or rank, the loss and the model
        # that it trains would depend on the layout.
        config.calculate_per_token_loss = True
    if layers := family(spec.model.family).layer_spec():
        config.transformer_layer_spec = layers
    if cpu:
        config.use_cpu_initialization = True
        config.gradient_accumulation_fusion = False
    else:
        _set_kernels(config, spec.layout)
    _set_recompute(config, spec.layout)
    return config


def _set_sizes(config: run.Config, spec: Spec) -> None:
    """Set the model's sizes and constants, each only where it differs from the default of NeMo's class."""
    model = spec.model
    defaults = _defaults(nemo_config_class(spec))
    for name in SAME_NAME:
        fact = getattr(model, name)
        fact = getattr(fact, "value", fact)
        if name in defaults and (fact or defaults[name]) and fact != defaults[name]:
            setattr(config, name, None if name == "q_lora_rank" and not fact else fact)
    for name in ROPE_FACTORS:
        if name in defaults and model.rope_scaling_factor != defaults[name]:
            setattr(config, name, model.rope_scaling_factor)
    if model.rotary_base_local:
        config.rotary_base = [model.rotary_base_local, model.rotary_base]
    elif model.rotary_base != defaults["rotary_base"]:
        config.rotary_base = model.rotary_base
    if model.window_size:
        _set_window(config, spec, defaults)
    config.seq_length = spec.seq_length
    # Where NeMo's class states a vocabulary size, NeMo ignores the tokenizer's.
    if defaults["vocab_size"] is not None and model.vocab_size != defaults["vocab_size"]:
        config.vocab_size = model.vocab_size
    if defaults.get("max_position_embeddings") is not None:
        config.max_position_embeddings = max(model.max_position_embeddings, spec.seq_length)
    if model.is_moe and "moe_layer_freq" in defaults and model.has_dense_layers:
        config.moe_layer_freq = [int(model.layer_is_moe(layer)) for layer in range(model.num_layers)]
    if model.mtp_num_layers:
        config.mtp_num_layers = model.mtp_num_layers
        config.mtp_loss_scaling_factor = model.mtp_loss_scaling_factor
        config.data_step_fn = run.Partial(gpt_data_step, use_mtp=True)  # the last stage needs the tokens too


def _set_window(config: run.Config, spec: Spec, defaults: dict[str, Any]) -> None:
    """Set the keys that a query sees.

    Megatron-Core counts those before the query's own, and published windows count the query's own too: NeMo's classes,
    which pass them on, see one key more.
    """
    before = spec.model.window_size - 1
    config.window_size = before if isinstance(defaults["window_size"], int) else [before, 0]
    if spec.model.window_every > 1 and family(spec.model.family).windows_by_frequency:
        config.window_attn_skip_freq = spec.model.window_every
    if spec.layout.cp > 1:
        config.cp_comm_type = "a2a"  # Transformer Engine's ring has no windows


def _defaults(config_class: type) -> dict[str, Any]:
    """The default of each field of a dataclass; None where it has none."""
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(config_class)
    }


def _set_parallelism(config: run.Config, spec: Spec) -> None:
    layout = spec.layout
    if layout.pp > 1 and layout.vpp > 1:
        # With PP=2 and interleaving, batched point-to-point pairs the wrong messages: training continues with wrong
        # gradients and without an error (Megatron-LM issues 750 and 1450). Separate, overlapped sends are correct at
        # every size.
        config.overlap_p2p_comm = True
        config.batch_p2p_comm = False
    if spec.model.tied and layout.pp > 1:
        config.share_embeddings_and_output_weights = True


def _set_experts(config: run.Config, spec: Spec, cpu: bool) -> None:
    layout = spec.layout
    dispatcher = Dispatcher.alltoall if cpu and layout.dispatcher is Dispatcher.auto else spec.dispatcher
    config.moe_token_dispatcher_type = dispatcher.value
    if layout.moe_expert_capacity_factor:
        config.moe_expert_capacity_factor = layout.moe_expert_capacity_factor
    if dispatcher is not Dispatcher.alltoall:
        config.moe_shared_expert_overlap = False  # only the alltoall dispatcher overlaps them
    if dispatcher is Dispatcher.flex:
        _set_deepep(config)
    config.moe_pad_expert_input_to_capacity = layout.moe_pad_expert_input_to_capacity
    config.moe_grouped_gemm = True
    config.moe_router_fusion = spec.levers.moe_router_fusion and not cpu  # its kernels are a GPU's
    config.moe_permute_fusion = True
    config.moe_aux_loss_coeff = spec.model.moe_aux_loss_coeff * counted_together(spec)


def counted_together(spec: Spec) -> int:
    """By how much the weight of the load-balancing loss is multiplied.

    megatron-core 0.15 divides the gradient of the auxiliary loss by the ranks that count its tokens together: the
    context-parallel ranks (0.16 does not), and with global_aux_loss the data-parallel ranks too. With the loss per
    token of finetuning, it multiplies the gradient by a rank's tokens, of which sequence parallelism leaves a part.
    """
    layout, balancing = spec.layout, spec.model.moe_router_load_balancing_type
    parts = layout.tp if spec.task.finetunes and layout.sequence_parallel else 1
    return layout.cp * parts * (max(spec.dp, 1) if balancing is LoadBalancing.global_aux_loss else 1)


def _set_deepep(config: run.Config) -> None:
    """Set what the flex dispatcher needs: DeepEP, with the settings of NeMo's DeepEPCallback."""
    defaults = _defaults(config.__fn_or_cls__)
    config.moe_enable_deepep = True
    if not defaults["moe_router_dtype"]:
        config.moe_router_dtype = "fp32"  # the only type in which DeepEP sends the router's probabilities


def _set_fusions(config: run.Config, spec: Spec, cpu: bool) -> None:
    """Turn every fusion on that NeMo's class does not turn on where it can: weight gradients are accumulated in their
    product where Apex is installed, as in NVIDIA's images, and Megatron-Core refuses the flag elsewhere.
    """
    # MLA's kernel is a GPU's; the ordinary one leaves out the factor by which YaRN scales queries and keys.
    scaled = spec.model.rope_scaling is RopeScaling.yarn
    config.apply_rope_fusion = not cpu if spec.model.is_mla else not scaled
    config.masked_softmax_fusion = True
    # Megatron-Core has no fused sum of the biases of experts.
    config.bias_dropout_fusion = not (spec.model.is_moe and spec.model.add_bias_linear)
    activation = _defaults(nemo_config_class(spec))["activation_func"]
    if activation.__name__ == quick_gelu.__name__:  # NeMo has a function of that name that its configuration refuses
        config.activation_func = activation = quick_gelu
        config.yarn_mscale_all_dim = 0.0  # as OpenAI's: 1 would cancel the scale of the scores
    # Without it Megatron-Core computes GELU by the error function, where every model here has the tanh form.
    config.bias_activation_fusion = activation in FUSED_ACTIVATIONS
    config.cross_entropy_loss_fusion = spec.layout.fused_cross_entropy
    config.cross_entropy_fusion_impl = "te"
    config.persist_layer_norm = True


def _set_kernels(config: run.Config, layout: Layout) -> None:
    """Set what only GPUs have: the choice of kernels, overlapped communication, CUDA graphs, offload."""
    if layout.attention_backend != "auto":
        config.attention_backend = AttnBackend[layout.attention_backend.value]
    if layout.tp_comm_overlap:
        config.tp_comm_overlap = True
    if layout.cuda_graphs:
        # Not NeMo's enable_cuda_graph: Megatron-Core turns it into this and refuses both together, and NeMo's strategy
        # has the configuration validated a second time.
        config.cuda_graph_impl = "local"
        config.use_te_rng_tracker = True  # the states of the other tracker cannot be captured
    if layout.cpu_offload_layers:
        config.cpu_offloading = True
        config.cpu_offloading_num_layers = layout.cpu_offload_layers


def _set_recompute(config: run.Config, layout: Layout) -> None:
    if layout.recompute is Recompute.full:
        config.recompute_granularity = "full"
        config.recompute_method = layout.recompute_method.value or "uniform"
        config.recompute_num_layers = layout.recompute_num_layers or 1
    elif layout.recompute is Recompute.selective:
        config.recompute_granularity = "selective"
        if layout.recompute_modules:
            config.recompute_modules = list(layout.recompute_modules)
        if "shared_experts" in layout.recompute_modules:
            config.moe_shared_expert_overlap = False  # Megatron-Core refuses both together
