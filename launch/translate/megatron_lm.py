"""A run as a launch script of Megatron-LM: the inverse of launch/foreign/megatron."""

from __future__ import annotations

from typing import Any

from slipway.configs import Dispatcher, Fsdp, Layout, Model, Precision, Recompute, Refusal, Spec
from slipway.configs.schema.layout import AttentionBackend
from slipway.configs.schema.model import Activation, RopeScaling, SoftmaxType
from slipway.launch.foreign.megatron.arguments import VERSION, definitions
from slipway.launch.foreign.megatron.optimizer import STYLES
from slipway.launch.foreign.megatron.run import FP8, SHARDS_PARAMETERS
from slipway.launch.translate.written import Lost, Written, require_pretraining, schedule_in_steps

_PROGRAM, _HYBRID_PROGRAM = "pretrain_gpt.py", "pretrain_mamba.py"
_GROUPS = 4  # arguments a line


class _Words:
    """Arguments in order: a flag with its values, or a switch."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def give(self, flag: str, value: Any) -> None:
        """An argument with a value, unless that is Megatron-LM's default."""
        made = definitions()[flag]
        if value is not None and made.default != value:
            self.words.append(f"{flag} {value}")

    def switch(self, flag: str, on: bool) -> None:
        """A switch, where it is on and changes the default."""
        made = definitions()[flag]
        stored = made.stores if flag != made.opposite else not made.stores
        if on and made.default != stored:
            self.words.append(flag)


def write(spec: Spec) -> Written:
    """The launch script.

    Raises:
        Refusal: Megatron-LM has no arguments for such a run.
    """
    require_pretraining(spec, "megatron-lm")
    words, lost = _Words(), list[Lost]()
    _model(words, spec)
    _experts(words, spec.model)
    _layout(words, spec)
    _batch(words, spec, lost)
    _precision(words, spec.precision)
    _levers(words, spec, lost)
    _optimizer(words, spec, lost)
    return Written(_script(spec, words.words), lost)


def _script(spec: Spec, words: list[str]) -> str:
    program = _HYBRID_PROGRAM if spec.model.hybrid_override_pattern else _PROGRAM
    per_node = min(spec.gpus_per_node, spec.gpus)
    nodes = -(-spec.gpus // per_node)
    lines = [" ".join(words[i : i + _GROUPS]) for i in range(0, len(words), _GROUPS)]
    env = [
        f"export {name}={value}"
        for name, value in sorted(spec.cluster.env.items())
        if name == "PYTORCH_CUDA_ALLOC_CONF"
    ]
    return "\n".join([
        "#!/bin/bash",
        f"# {spec.name} on {spec.gpus} x {spec.gpu.name.upper()}, for Megatron-LM {VERSION}.",
        "# Written by slipway translate.",
        "# Add the tokenizer, the data (--data-path) and the folders (--save, --load).",
        "export CUDA_DEVICE_MAX_CONNECTIONS=1",
        *env,
        "ARGS=(",
        *(f"    {line}" for line in lines),
        ")",
        f"torchrun --nnodes {nodes} --nproc_per_node {per_node} --rdzv_backend c10d "
        f'--rdzv_endpoint "${{MASTER_ADDR:-localhost}}:29500" {program} "${{ARGS[@]}}"',
        "",
    ])  # fmt: skip


def _model(words: _Words, spec: Spec) -> None:
    model = spec.model
    for name in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels"):
        words.words.append(f"--{name.replace('_', '-')} {getattr(model, name)}")
    if model.num_query_groups != model.num_attention_heads and not model.is_mla:
        words.words.append(f"--group-query-attention --num-query-groups {model.num_query_groups}")
    words.words.append(f"--tokenizer-type NullTokenizer --vocab-size {model.vocab_size - 1}")
    words.words.append(f"--seq-length {spec.seq_length}")
    words.words.append(f"--max-position-embeddings {max(model.max_position_embeddings, spec.seq_length)}")
    divisor = model.make_vocab_size_divisible_by if model.pad_vocab else 1
    words.give("--make-vocab-size-divisible-by", divisor)
    if model.gated_linear_unit and model.activation_func is not Activation.silu:
        raise Refusal(f"Megatron-LM has no gated {model.activation_func.value}", "Translate to megatron-bridge.")
    words.switch("--swiglu", model.gated_linear_unit)
    words.switch("--squared-relu", model.activation_func is Activation.squared_relu)
    words.give("--normalization", model.normalization.value)
    words.give("--norm-epsilon", model.layernorm_epsilon)
    words.switch("--disable-bias-linear", not model.add_bias_linear)
    words.switch("--add-qkv-bias", model.add_qkv_bias and not model.add_bias_linear)
    words.switch("--qk-layernorm", model.qk_layernorm)
    words.switch("--qk-l2-norm", model.qk_l2_norm)
    if model.softmax_type is SoftmaxType.learnable:
        words.give("--softmax-type", "learnable")
    words.switch("--untie-embeddings-and-output-weights", not model.tied)
    words.give("--position-embedding-type", model.position_embedding_type.value)
    words.give("--rotary-base", round(model.rotary_base))
    words.give("--init-method-std", model.init_method_std)
    if model.rope_scaling is RopeScaling.llama3 and model.rope_scaling_factor != 1:
        words.words.append(f"--use-rope-scaling --rope-scaling-factor {model.rope_scaling_factor}")
    if model.is_mla:
        words.switch("--multi-latent-attention", True)
        for name in ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim"):
            words.give(f"--{name.replace('_', '-')}", getattr(model, name) or None)
        words.give("--rotary-scaling-factor", model.rope_scaling_factor or 1.0)
    if model.window_size:
        words.words.append(f"--window-size {model.window_size},0")
        if model.window_every > 1:
            words.words.append(f"--window-attn-skip-freq {model.window_every}")
    if model.hybrid_override_pattern:
        words.words.append(f"--hybrid-override-pattern '{model.hybrid_override_pattern}' --is-hybrid-model")
        for name in ("mamba_num_heads", "mamba_head_dim", "mamba_state_dim", "mamba_num_groups"):
            words.give(f"--{name.replace('_', '-')}", getattr(model, name))
    words.words.append(f"--hidden-dropout {model.hidden_dropout} --attention-dropout {model.attention_dropout}")
    words.give("--rotary-percent", model.rotary_percent)


def _experts(words: _Words, model: Model) -> None:
    if model.mtp_num_layers:
        words.give("--mtp-num-layers", model.mtp_num_layers)
        words.give("--mtp-loss-scaling-factor", model.mtp_loss_scaling_factor)
    if not model.is_moe:
        return
    words.words.append(f"--num-experts {model.num_moe_experts} --moe-ffn-hidden-size {model.moe_ffn_hidden_size}")
    words.give("--moe-router-topk", model.moe_router_topk)
    words.give("--moe-shared-expert-intermediate-size", model.moe_shared_expert_intermediate_size or None)
    if model.has_dense_layers and not model.hybrid_override_pattern:
        holds = [int(model.layer_is_moe(layer)) for layer in range(model.num_layers)]
        words.words.append(f"--moe-layer-freq '[{','.join(map(str, holds))}]'")
    words.words.append("--moe-grouped-gemm")
    words.give("--moe-router-load-balancing-type", model.moe_router_load_balancing_type.value)
    words.give("--moe-aux-loss-coeff", model.moe_aux_loss_coeff)
    words.switch("--moe-router-enable-expert-bias", model.moe_router_enable_expert_bias)
    words.give("--moe-router-num-groups", model.moe_router_num_groups or None)
    words.give("--moe-router-group-topk", model.moe_router_group_topk or None)
    words.give("--moe-router-topk-scaling-factor", model.moe_router_topk_scaling_factor or None)


def _layout(words: _Words, spec: Spec) -> None:
    layout = spec.layout
    for flag, size in (
        ("--tensor-model-parallel-size", layout.tp),
        ("--pipeline-model-parallel-size", layout.pp),
        ("--context-parallel-size", layout.cp),
        ("--expert-model-parallel-size", layout.ep),
        ("--expert-tensor-parallel-size", layout.etp or None),
        ("--decoder-first-pipeline-num-layers", layout.num_layers_in_first_pipeline_stage or None),
        ("--decoder-last-pipeline-num-layers", layout.num_layers_in_last_pipeline_stage or None),
    ):
        words.give(flag, size)
    if layout.pipeline_layout:
        words.words.append(f"--pipeline-model-parallel-layout '{layout.pipeline_layout}'")
    elif layout.vpp > 1:
        words.give("--num-virtual-stages-per-pipeline-rank", layout.vpp)
    words.switch("--account-for-embedding-in-pipeline-split", layout.account_for_embedding)
    words.switch("--account-for-loss-in-pipeline-split", layout.account_for_loss)
    words.switch("--sequence-parallel", layout.sequence_parallel)
    words.switch("--use-distributed-optimizer", layout.distributed_optimizer)
    words.switch("--overlap-grad-reduce", layout.overlap_grad_reduce)
    words.switch("--overlap-param-gather", layout.overlap_param_gather and layout.distributed_optimizer)
    words.switch("--tp-comm-overlap", layout.tp_comm_overlap)
    if layout.fsdp is not Fsdp.none:
        words.words.append(f"--use-megatron-fsdp --data-parallel-sharding-strategy {SHARDS_PARAMETERS}")
    if spec.model.is_moe:
        _dispatch(words, spec, layout)
    _memory(words, layout)


def _dispatch(words: _Words, spec: Spec, layout: Layout) -> None:
    dispatcher = spec.dispatcher
    words.give("--moe-token-dispatcher-type", "flex" if dispatcher is Dispatcher.hybridep else dispatcher.value)
    words.switch("--moe-enable-deepep", dispatcher is Dispatcher.flex)
    words.give("--moe-expert-capacity-factor", layout.moe_expert_capacity_factor or None)
    words.switch("--moe-pad-expert-input-to-capacity", layout.moe_pad_expert_input_to_capacity)


def _memory(words: _Words, layout: Layout) -> None:
    if layout.recompute is not Recompute.none:
        words.give("--recompute-granularity", layout.recompute.value)
    if layout.recompute is Recompute.full:
        words.give("--recompute-method", layout.recompute_method.value or "uniform")
        words.give("--recompute-num-layers", layout.recompute_num_layers or 1)
    elif layout.recompute_modules:
        words.words.append(f"--recompute-modules {' '.join(layout.recompute_modules)}")
    words.switch("--optimizer-cpu-offload", layout.optimizer_cpu_offload)
    if layout.cuda_graphs:
        words.give("--cuda-graph-impl", "local")
        words.switch("--te-rng-tracker", True)
    if layout.fused_cross_entropy:
        words.words.append("--cross-entropy-loss-fusion --cross-entropy-fusion-impl te")
    if layout.attention_backend is not AttentionBackend.auto:
        words.give("--attention-backend", layout.attention_backend.value)


def _batch(words: _Words, spec: Spec, lost: list[Lost]) -> None:
    layout = spec.layout
    words.words.append(f"--micro-batch-size {layout.mbs} --global-batch-size {layout.gbs}")
    words.words.append(f"--train-iters {spec.run.max_steps}")
    if layout.cpu_offload_layers:
        lost.append(
            Lost("layout.cpu_offload_layers", str(layout.cpu_offload_layers), "Megatron-LM has no argument for it")
        )


def _precision(words: _Words, precision: Precision) -> None:
    if precision.gemm == "fp32":
        return
    words.switch("--bf16", True)
    if precision.gemm == "fp4":
        words.words.append("--fp4-format e2m1")
    if precision.gemm == "fp8":
        recipe = next(word for word, name in FP8.items() if name == precision.name)
        words.words.append(f"--fp8-format {precision.fp8_format.value}")
        words.give("--fp8-recipe", recipe)
        words.switch("--fp8-param-gather", precision.fp8_param_gather)
        words.switch("--first-last-layers-bf16", precision.first_last_layers_bf16)
        if precision.first_last_layers_bf16:
            words.give("--num-layers-at-start-in-bf16", precision.num_layers_at_start_in_bf16)
            words.give("--num-layers-at-end-in-bf16", precision.num_layers_at_end_in_bf16)
    flag = "--accumulate-allreduce-grads-in-fp32" if precision.grad_reduce_in_fp32 else "--grad-reduce-in-bf16"
    words.switch(flag, True)


def _levers(words: _Words, spec: Spec, lost: list[Lost]) -> None:
    levers = spec.levers
    if levers.wgrad_deferral_limit:
        words.words.append(f"--defer-embedding-wgrad-compute --wgrad-deferral-limit {levers.wgrad_deferral_limit}")
    words.give("--ddp-bucket-size", levers.bucket_size or None)
    words.switch("--overlap-param-gather-with-optimizer-step", levers.overlap_param_gather_with_optimizer_step)
    words.give("--num-distributed-optimizer-instances", levers.optimizer_instances)
    words.switch("--use-sharp", levers.sharp)
    words.switch("--moe-router-fusion", levers.moe_router_fusion)
    words.switch("--overlap-moe-expert-parallel-comm", levers.expert_comm_overlap)
    words.switch("--delay-wgrad-compute", levers.delay_wgrad)
    words.switch("--no-check-for-nan-in-loss-and-grad", not levers.check_for_nan)
    for name in ("gc_interval", "nvls", "p2p_chunk_bytes", "numa_binding", "layernorm_sm_margin"):
        value = getattr(levers, name)
        if value != getattr(type(levers)(), name):
            lost.append(Lost(f"levers.{name}", str(value), "it is set around a rank, not by an argument"))


def _optimizer(words: _Words, spec: Spec, lost: list[Lost]) -> None:
    optim, schedule = spec.optim, schedule_in_steps(spec, lost)
    words.words.append(f"--lr {optim.lr} --min-lr {optim.min_lr}")
    style = next(word for word, known in STYLES.items() if known is schedule.style)
    words.give("--lr-decay-style", style)
    words.give("--lr-decay-iters", schedule.decay if style != "constant" else None)
    words.give("--lr-warmup-iters", schedule.warmup)
    for name in ("weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "clip_grad"):
        words.give(f"--{name.replace('_', '-')}", getattr(optim, name))
    if optim.precision_aware:
        moments = optim.moments.value
        words.words.append(f"--use-precision-aware-optimizer --exp-avg-dtype {moments} --exp-avg-sq-dtype {moments}")
