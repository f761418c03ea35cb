"""A run as a ConfigContainer of Megatron-Bridge in YAML: the inverse of launch/foreign/bridge."""

from __future__ import annotations

from typing import Any

import yaml

from slipway.configs import Dispatcher, Fsdp, Recompute, Spec
from slipway.configs.schema.layout import AttentionBackend
from slipway.configs.schema.model import Activation
from slipway.launch.foreign.bridge.keys import EXPERTS, LATENT, LAYOUT, MODEL, OPTIMIZER, RECIPES, STYLES
from slipway.launch.translate.written import Lost, Written, require_pretraining, schedule_in_steps

_CONFIG = "megatron.bridge.training.config."
_FUNCTIONS = {
    Activation.silu: "torch.nn.functional.silu",
    Activation.gelu: "torch.nn.functional.gelu",
    Activation.squared_relu: "megatron.core.activations.squared_relu",
}
_CLASSES = {
    "train": "TrainingConfig",
    "optimizer": "OptimizerConfig",
    "scheduler": "SchedulerConfig",
    "ddp": "DistributedDataParallelConfig",
    "dataset": "MockGPTDatasetConfig",
    "logger": "LoggerConfig",
    "checkpoint": "CheckpointConfig",
}


def write(spec: Spec) -> Written:
    """The configuration."""
    require_pretraining(spec, "megatron-bridge")
    lost: list[Lost] = []
    tree: dict[str, Any] = {"_target_": f"{_CONFIG}ConfigContainer"}
    for path, value in (_model(spec) | _layout(spec) | _of_training(spec, lost)).items():
        _set(tree, path, value)
    for part, name in _CLASSES.items():
        tree[part] = {"_target_": _CONFIG + name, **tree.get(part, {})}
    tree["tokenizer"] = {
        "_target_": "megatron.bridge.training.tokenizers.config.TokenizerConfig",
        "tokenizer_type": "NullTokenizer",
        "vocab_size": spec.model.vocab_size,
    }
    tree["mixed_precision"] = _precision(spec)
    _around(spec, lost)
    where = f"{spec.name} on {spec.gpus} x {spec.gpu.name.upper()}"
    head = f"# {where}, for megatron-bridge 0.3.1. Written by slipway translate.\n"
    return Written(head + yaml.safe_dump(tree, sort_keys=False, width=110), lost)


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _model(spec: Spec) -> dict[str, Any]:
    model = spec.model
    kind = (
        "mamba.mamba_provider.MambaModelProvider" if model.hybrid_override_pattern else "gpt_provider.GPTModelProvider"
    )
    if model.is_mla:
        kind = "deepseek.deepseek_provider.DeepSeekModelProvider"
    out: dict[str, Any] = {"model._target_": f"megatron.bridge.models.{kind}"}
    out |= {path: _plain(getattr(model, name)) for name, path in MODEL.items()}
    out["model.seq_length"] = out["dataset.sequence_length"] = spec.seq_length
    out["model.should_pad_vocab"] = model.pad_vocab
    out["model.activation_func"] = {"_target_": _FUNCTIONS[model.activation_func], "_call_": False}
    if not model.mtp_num_layers:
        del out["model.mtp_num_layers"], out["model.mtp_loss_scaling_factor"]
    if model.is_moe:
        out |= {path: _plain(getattr(model, name)) for name, path in EXPERTS.items()}
        unset = ("_groups", "_group_topk", "_topk_scaling_factor")  # of these, None is no value and zero is one
        out = {path: value for path, value in out.items() if value or not path.endswith(unset)}
        out["model.moe_grouped_gemm"] = True
        if model.has_dense_layers and not model.hybrid_override_pattern:
            out["model.moe_layer_freq"] = [int(model.layer_is_moe(layer)) for layer in range(model.num_layers)]
    if model.is_mla:
        out["model.multi_latent_attention"] = True
        out |= {path: getattr(model, name) or None for name, path in LATENT.items()}
    if model.window_size:
        out |= {"model.window_size": [model.window_size, 0], "model.window_attn_skip_freq": model.window_every}
    if model.hybrid_override_pattern:
        names = ("hybrid_override_pattern", "mamba_num_heads", "mamba_head_dim", "mamba_state_dim", "mamba_num_groups")
        out |= {f"model.{name}": getattr(model, name) for name in names}
    return out


def _layout(spec: Spec) -> dict[str, Any]:
    layout = spec.layout
    special = ("vpp", "etp", "sp", "seq_length", "recompute", "recompute_modules", "recompute_method", "dispatcher",
               "recompute_num_layers", "pipeline_layout", "cuda_graphs", "attention_backend", "fsdp")  # fmt: skip
    out = {path: _plain(getattr(layout, name)) for name, path in LAYOUT.items() if name not in special}
    out = {path: value for path, value in out.items() if value or not path.startswith("model.num_layers_in")}
    out[LAYOUT["sp"]] = layout.sequence_parallel
    if layout.vpp > 1:
        out[LAYOUT["vpp"]] = layout.vpp
    if layout.etp:
        out[LAYOUT["etp"]] = layout.etp
    if layout.pipeline_layout:
        out[LAYOUT["pipeline_layout"]] = layout.pipeline_layout
    if layout.recompute is not Recompute.none:
        out[LAYOUT["recompute"]] = layout.recompute.value
    if layout.recompute is Recompute.full:
        out[LAYOUT["recompute_method"]] = layout.recompute_method.value or "uniform"
        out[LAYOUT["recompute_num_layers"]] = layout.recompute_num_layers or 1
    elif layout.recompute_modules:
        out[LAYOUT["recompute_modules"]] = list(layout.recompute_modules)
    if spec.model.is_moe:
        flex = spec.dispatcher in (Dispatcher.flex, Dispatcher.hybridep)
        out[LAYOUT["dispatcher"]] = "flex" if flex else spec.dispatcher.value
        if flex:
            backend = "hybridep" if spec.dispatcher is Dispatcher.hybridep else "deepep"
            out |= {"model.moe_flex_dispatcher_backend": backend, "model.moe_enable_deepep": backend == "deepep"}
    if layout.cuda_graphs:
        out |= {LAYOUT["cuda_graphs"]: "local", "model.use_te_rng_tracker": True}
    if layout.attention_backend is not AttentionBackend.auto:
        backend_ = f"megatron.core.transformer.enums.AttnBackend.{layout.attention_backend.value}"
        out[LAYOUT["attention_backend"]] = backend_
    if layout.fsdp is not Fsdp.none:
        out |= {LAYOUT["fsdp"]: True, "ddp.data_parallel_sharding_strategy": "optim_grads_params"}
    if not layout.moe_expert_capacity_factor:
        del out[LAYOUT["moe_expert_capacity_factor"]]
    return out


def _of_training(spec: Spec, lost: list[Lost]) -> dict[str, Any]:
    optim, schedule = spec.optim, schedule_in_steps(spec, lost)
    out: dict[str, Any] = {"train.train_iters": spec.run.max_steps}
    out |= {path: getattr(optim, name) for name, path in OPTIMIZER.items()}
    out["optimizer.use_distributed_optimizer"] = spec.layout.distributed_optimizer
    out["scheduler.lr_decay_style"] = next(word for word, ours in STYLES.items() if ours == schedule.style.value)
    out["scheduler.lr_warmup_iters"] = schedule.warmup
    if schedule.style.value != "constant":
        out["scheduler.lr_decay_iters"] = schedule.decay
    if optim.precision_aware:
        dtype = "torch.bfloat16" if optim.moments.value == "bf16" else "torch.float32"
        for name in ("exp_avg_dtype", "exp_avg_sq_dtype"):
            out[f"optimizer.{name}"] = {"_target_": dtype, "_call_": False}
        out["optimizer.use_precision_aware_optimizer"] = True
    levers = spec.levers
    if levers.wgrad_deferral_limit:
        out |= {
            "comm_overlap.defer_embedding_wgrad_compute": True,
            "comm_overlap.wgrad_deferral_limit": levers.wgrad_deferral_limit,
        }
    if levers.expert_comm_overlap:
        out["comm_overlap.overlap_moe_expert_parallel_comm"] = True
    if levers.delay_wgrad:
        out["comm_overlap.delay_wgrad_compute"] = True
    return out | {"comm_overlap._target_": "megatron.bridge.training.comm_overlap.CommOverlapConfig"}


def _precision(spec: Spec) -> dict[str, Any]:
    made = spec.precision
    out: dict[str, Any] = {"_target_": "megatron.bridge.training.mixed_precision.MixedPrecisionConfig"}
    out |= {"fp32" if made.gemm == "fp32" else "bf16": True, "grad_reduce_in_fp32": made.grad_reduce_in_fp32}
    if made.gemm == "fp8":
        recipe = next(word for word, name in RECIPES.items() if name == made.name)
        out |= {"fp8": made.fp8_format.value, "fp8_recipe": recipe, "fp8_param_gather": made.fp8_param_gather}
        if made.first_last_layers_bf16:
            names = ("first_last_layers_bf16", "num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16")
            out |= {name: getattr(made, name) for name in names}
    return out | ({"fp4": "e2m1"} if made.gemm == "fp4" else {})


def _around(spec: Spec, lost: list[Lost]) -> None:
    """What the ConfigContainer has no field for."""
    lost.append(Lost("gpus", str(spec.gpus), "it is what starts the ranks that says it"))
    usual, levers = type(spec.levers)(), spec.levers
    for name in ("gc_interval", "nvls", "p2p_chunk_bytes", "numa_binding", "layernorm_sm_margin", "bucket_size",
                 "optimizer_instances", "check_for_nan", "moe_router_fusion", "align_param_gather", "sharp",
                 "overlap_param_gather_with_optimizer_step"):  # fmt: skip
        if getattr(levers, name) != getattr(usual, name):
            lost.append(Lost(f"levers.{name}", str(getattr(levers, name)), "it is not written: set it by hand"))
    if spec.layout.cpu_offload_layers:
        lost.append(Lost("layout.cpu_offload_layers", str(spec.layout.cpu_offload_layers), "it is not written"))
    if spec.model.rope_scaling_factor:
        why = "the provider of the model's family scales RoPE, not the general one"
        lost.append(Lost("model.rope_scaling_factor", f"{spec.model.rope_scaling_factor:g}", why))
