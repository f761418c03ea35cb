"""Attention and rotary embeddings."""

from .dot_product_attention import DotProductAttention
from .rope import apply_fused_qkv_rotary_pos_emb, apply_rotary_pos_emb

__all__ = ["DotProductAttention", "apply_fused_qkv_rotary_pos_emb", "apply_rotary_pos_emb"]
