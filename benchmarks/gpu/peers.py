"""Alternatives for training the same layers: plain PyTorch, torchao's float8, Hugging Face transformers.

Each follows its own documentation: fp32 weights under bf16 autocast, scaled_dot_product_attention, fused AdamW and
``torch.compile``.

Shapes: b batch, s sequence length; x is (b, s, hidden), tokens and labels are (b, s).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from slipway.configs import Model

PEERS = ("torch", "torch_float8", "transformers")
SEED = 1234
INITIAL_STD = 0.02  # as GPT-2 and the recipes: the first loss is then that of a uniform guess


class Attention(nn.Module):
    """Grouped-query attention with rotary positions. Input and output are (b, s, hidden)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.heads, self.groups, self.width = model.num_attention_heads, model.num_query_groups, model.kv_channels
        self.q = nn.Linear(model.hidden_size, self.heads * self.width, bias=False)
        self.kv = nn.Linear(model.hidden_size, 2 * self.groups * self.width, bias=False)
        self.out = nn.Linear(self.heads * self.width, model.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        b, s, _ = x.shape
        q = self.q(x).view(b, s, self.heads, self.width).transpose(1, 2)
        k, v = self.kv(x).view(b, s, 2, self.groups, self.width).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(
            _rotate(q, cos, sin), _rotate(k, cos, sin), v, is_causal=True, enable_gqa=True
        )
        return self.out(out.transpose(1, 2).reshape(b, s, -1))


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of x (b, heads, s, width) by cos and sin (s, width / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Layer(nn.Module):
    """A pre-norm transformer layer with a gated feed-forward. Input and output are (b, s, hidden)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.RMSNorm(model.hidden_size, eps=model.layernorm_epsilon) for _ in range(2))
        self.attention = Attention(model)
        self.gate_up = nn.Linear(model.hidden_size, 2 * model.ffn_hidden_size, bias=False)
        self.down = nn.Linear(model.ffn_hidden_size, model.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), cos, sin)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    """A Llama in plain PyTorch. ``forward(tokens, labels)`` returns the mean loss in nats per token."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.embedding = nn.Embedding(model.vocab_size, model.hidden_size)
        self.layers = nn.ModuleList(Layer(model) for _ in range(model.num_layers))
        self.norm = nn.RMSNorm(model.hidden_size, eps=model.layernorm_epsilon)
        self.head = nn.Linear(model.hidden_size, model.vocab_size, bias=False)
        self.base, self.width = model.rotary_base, model.kv_channels

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.float32)
        rates = self.base ** (-torch.arange(0, self.width, 2, device=tokens.device, dtype=torch.float32) / self.width)
        angles = positions[:, None] * rates
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), labels.flatten())


def _transformers(model: Model) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_query_groups,
        head_dim=model.kv_channels,
        max_position_embeddings=model.seq_length,
        rms_norm_eps=model.layernorm_epsilon,
        rope_theta=model.rotary_base,
        use_cache=False,
        attn_implementation="sdpa",
    )

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = LlamaForCausalLM(config)

        def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(self.model(tokens).logits.flatten(0, 1).float(), labels.flatten())

    return WithLoss()


@dataclass
class Step:
    """A peer ready to train: ``run(micro_batches)`` takes one optimizer step and returns the mean loss."""

    model: nn.Module
    run: Callable[[list[tuple[torch.Tensor, torch.Tensor]]], float]


def build(peer: str, model: Model, device: str, *, compiled: bool = True) -> Step:
    """A peer ready to train ``model``'s layers on ``device``.

    Args:
        peer: one of :data:`PEERS`; torch_float8 needs torchao.
    """
    torch.manual_seed(SEED)
    with torch.device(device):
        net: Any = _transformers(model) if peer == "transformers" else Llama(model)
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=INITIAL_STD)
    if peer == "torch_float8":
        from torchao.float8 import convert_to_float8_training

        convert_to_float8_training(net, module_filter_fn=lambda _, name: "head" not in name)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(net) if compiled else net
    kind = torch.bfloat16 if device == "cuda" else torch.float32

    def run(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        total = 0.0
        for tokens, labels in batches:
            with torch.autocast(device, dtype=kind, enabled=kind is torch.bfloat16):
                loss = forward(tokens, labels) / len(batches)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return Step(net, run)
