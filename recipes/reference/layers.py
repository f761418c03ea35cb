"""Reference implementations, in plain PyTorch, of the kernels that Transformer Engine has on a GPU. Plugged in by
ModuleSpec.

They compute what the fused kernels compute, in fp32 where those accumulate in fp32, at any speed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint


class Norm:
    """RMSNorm or LayerNorm whose weights are marked for the gradient all-reduce that sequence parallelism needs.

    Megatron's own wrapper of the torch norms refuses sequence parallelism for want of that mark.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> Any:
        kind = torch.nn.RMSNorm if config.normalization == "RMSNorm" else torch.nn.LayerNorm
        norm = kind(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm


class DuplicatedLinear(torch.nn.Module):
    """TELinear(parallel_mode="duplicated"): the same weight on every tensor-parallel rank, for MLA's down projections.

    The column-parallel layer of Megatron's local spec loses the reduction of the rotary key's gradient over TP.
    """

    def __init__(
        self, input_size: int, output_size: int, *, config: TransformerConfig, init_method: Any = None, **kwargs: Any
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(output_size, input_size, dtype=config.params_dtype))
        if init_method is not None:
            init_method(self.weight)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.nn.functional.linear(x, self.weight), None

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> Any:
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True), prefix, None, sharded_offsets
        )


class _GatherSequence(torch.autograd.Function):
    """All-gather along a new leading dimension; the backward sums every rank's gradient and keeps ours."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(group.size())]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad[ctx.group.rank()], None


def _positions(rank: int, cp: int, rows: int) -> torch.Tensor:
    """Global positions of a rank's rows: under CP rank r holds chunks r and 2*cp-1-r, so that causal work balances."""
    if cp == 1:
        return torch.arange(rows)
    half = rows // 2
    mirror = 2 * cp - 1 - rank
    return torch.cat([torch.arange(rank * half, (rank + 1) * half), torch.arange(mirror * half, (mirror + 1) * half)])


class CoreAttention(MegatronModule):
    """Causal attention by its definition: GQA, sliding window, sinks, MLA's unequal head dims, context parallelism.

    Shapes: q [s, b, h, d], k [s, b, g, d], v [s, b, g, dv] -> [s, b, h * dv], s being the rank's share of the sequence.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        k_channels: int | None = None,
        v_channels: int | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(config=config)
        self.scale = softmax_scale or 1.0 / math.sqrt(k_channels or config.kv_channels)
        from megatron.core.transformer.utils import is_layer_window_attention

        windowed = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        self.window = config.window_size[0] if windowed else None
        self.cp_group = parallel_state.get_context_parallel_group() if config.context_parallel_size > 1 else None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: Any = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        rows, batch, heads, _ = query.shape
        cp, rank = (1, 0) if self.cp_group is None else (self.cp_group.size(), self.cp_group.rank())
        q_pos = _positions(rank, cp, rows)
        k_pos = torch.cat([_positions(r, cp, rows) for r in range(cp)])
        if self.cp_group is not None:
            key = _GatherSequence.apply(key, self.cp_group).flatten(0, 1)
            value = _GatherSequence.apply(value, self.cp_group).flatten(0, 1)
        repeat = heads // key.shape[2]
        key, value = key.repeat_interleave(repeat, dim=2), value.repeat_interleave(repeat, dim=2)
        scores = torch.einsum("qbhd,kbhd->bhqk", query.float(), key.float()) * self.scale
        hidden = q_pos[:, None] < k_pos[None, :]
        if self.window is not None:
            hidden |= q_pos[:, None] - k_pos[None, :] > self.window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out = torch.einsum("bhqk,kbhd->qbhd", weights, value.float())
        return out.to(query.dtype).reshape(rows, batch, -1).contiguous()


_NORMS = ("input_layernorm", "pre_cross_attn_layernorm", "pre_mlp_layernorm")
_ATTENTION_NORMS = ("q_layernorm", "k_layernorm", "kv_layernorm")


def layer_spec(config: TransformerConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """Megatron's own local block spec with the reference attention and norms in place of Transformer Engine's."""
    block = get_gpt_decoder_block_spec(
        config, use_transformer_engine=False, normalization=config.normalization, vp_stage=vp_stage
    )
    for layer in block.layer_specs:
        parts = layer.submodules
        for name in _NORMS:
            if getattr(parts, name, IdentityOp) is not IdentityOp:
                setattr(parts, name, Norm)
        attention = parts.self_attention.submodules
        attention.core_attention = CoreAttention
        for name in _ATTENTION_NORMS:
            if getattr(attention, name, None) not in (None, IdentityOp):
                setattr(attention, name, Norm)
        for name in ("linear_q_down_proj", "linear_kv_down_proj"):
            if hasattr(attention, name):
                setattr(attention, name, DuplicatedLinear)
                _accept_duplicated_linear()
    if block.layer_norm is not None:
        block.layer_norm = Norm
    return block


def _accept_duplicated_linear() -> None:
    """MLA passes ``parallel_mode`` only to a class it knows as TELinear, and there is none without Transformer
    Engine.
    """
    import megatron.core.transformer.multi_latent_attention as mla

    mla.TELinear = DuplicatedLinear


class Adam(torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101) with the state layout of Transformer Engine's FusedAdam.

    The step counter lives in the parameter group, as the distributed optimizer's checkpoints expect.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.adam_w_mode = adam_w_mode
        defaults = {
            "lr": lr,
            "bias_correction": bias_correction,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()  # type: ignore[misc]
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            beta1, beta2 = group["betas"]
            correction1 = 1 - beta1 ** group["step"]
            correction2 = 1 - beta2 ** group["step"]
            for p in group["params"]:
                decoupled = getattr(p, "decoupled_grad", None)
                grad = p.grad if decoupled is None else decoupled
                if grad is None:
                    continue
                state = self.state[p]
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                grad = grad.to(p.dtype)
                if group["weight_decay"]:
                    if self.adam_w_mode:
                        p.mul_(1 - group["lr"] * group["weight_decay"])
                    else:
                        grad = grad + group["weight_decay"] * p
                state["exp_avg"].lerp_(grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                denominator = (state["exp_avg_sq"] / correction2).sqrt_().add_(group["eps"])
                p.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] / correction1)
