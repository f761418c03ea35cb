"""The layers of a model that adapters are put on, and the parameters that they add."""

from __future__ import annotations

from fnmatch import fnmatch

from slipway.configs import Model, Spec
from slipway.planner.flops import attention_width

_ATTENTION = ("linear_qkv", "linear_proj")
_LATENT = ("linear_q_down_proj", "linear_q_up_proj", "linear_kv_down_proj", "linear_kv_up_proj", "linear_proj")
MLP = ("linear_fc1", "linear_fc2")
"""The layers of a feed-forward block."""


def adaptable_layers(model: Model) -> tuple[str, ...]:
    """The names of a model's linear layers that can get an adapter, as Megatron-Core has them."""
    attention: tuple[str, ...] = _ATTENTION
    if model.is_mla:
        attention = _LATENT if model.q_lora_rank else ("linear_q_proj", *_LATENT[2:])
    mamba = ("in_proj", "out_proj") if model.mamba_num_heads else ()
    return (*attention, *MLP, *mamba)


def named_by(target: str) -> str:
    """The layer that a target names, without the modules in front of it."""
    return target.rpartition(".")[2]


def adapted_layers(spec: Spec) -> tuple[str, ...]:
    """The layers that get an adapter; none where the weights themselves train."""
    if not spec.task.lora_rank:
        return ()
    targets = [named_by(target) for target in spec.task.lora_targets]
    return tuple(name for name in adaptable_layers(spec.model) if any(fnmatch(name, target) for target in targets))


def adapter_parameters(spec: Spec) -> int:
    """Parameters of all adapters: rank x (inputs + outputs) of each layer that has one."""
    sizes = _sizes(spec.model)
    of_one_layer = sum(sum(sizes[name]) for name in adapted_layers(spec))
    return spec.task.lora_rank * of_one_layer * spec.model.num_layers


def _sizes(model: Model) -> dict[str, tuple[int, int]]:
    """The outputs and inputs of each layer. Experts share one adapter."""
    h, up = model.hidden_size, 2 if model.gated_linear_unit else 1
    qk, v = (int(width) for width in attention_width(model))
    width = model.moe_ffn_hidden_size if model.is_moe else model.ffn_hidden_size
    low = model.kv_lora_rank
    heads = model.num_attention_heads
    return {
        "linear_qkv": (qk + 2 * model.num_query_groups * model.kv_channels, h),
        "linear_proj": (h, v),
        "linear_fc1": (up * width, h),
        "linear_fc2": (h, width),
        "linear_q_proj": (qk, h),
        "linear_q_down_proj": (model.q_lora_rank, h),
        "linear_q_up_proj": (qk, model.q_lora_rank),
        "linear_kv_down_proj": (low + model.qk_pos_emb_head_dim, h),
        "linear_kv_up_proj": (heads * (model.qk_head_dim + model.v_head_dim), low),
        "in_proj": (int(model.mamba_projection) if model.mamba_num_heads else 0, h),
        "out_proj": (h, int(model.mamba_width) if model.mamba_num_heads else 0),
    }
