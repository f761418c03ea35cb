"""One architecture: the facts that decide its parameters, FLOPs and memory."""

from __future__ import annotations

from dataclasses import dataclass

from slipway.configs.schema.layers import HYBRID_SYMBOLS, FeedForward, LayerKind, LayerShape, Mixer, layer_kinds
from slipway.configs.schema.legal import Choice, Count, Fraction, NonNegative, Positive, Size


class RopeScaling(Choice):
    """How the frequencies of rotary embeddings are scaled for longer sequences than those of pretraining."""

    none = "none"
    llama3 = "llama3"
    yarn = "yarn"


class LoadBalancing(Choice):
    """Over what the load-balancing loss counts tokens: a micro-batch, each sequence, the global batch."""

    aux_loss = "aux_loss"
    seq_aux_loss = "seq_aux_loss"
    global_aux_loss = "global_aux_loss"
    none = "none"


class SoftmaxType(Choice):
    """The softmax of attention; ``learnable``: with a learned sink for each head."""

    vanilla = "vanilla"
    learnable = "learnable"


class Normalization(Choice):
    """The normalization layer (Megatron-Core's ``normalization``)."""

    RMSNorm = "RMSNorm"
    LayerNorm = "LayerNorm"


class Activation(Choice):
    """The nonlinearity of the feed-forward block."""

    silu = "silu"
    gelu = "gelu"
    squared_relu = "squared_relu"


class PositionEmbedding(Choice):
    """How the position of a token enters the model (Megatron-Core's ``position_embedding_type``)."""

    rope = "rope"
    learned_absolute = "learned_absolute"
    alibi = "alibi"
    none = "none"


@dataclass(frozen=True, kw_only=True)
class Model:
    """One architecture. tests/configs compares every field that NeMo's configuration class has with that class."""

    name: str
    """Name of the file in configs/model."""

    family: str
    """Module in recipes/ that builds the model."""

    nemo_config: str = ""
    """Class in ``nemo.collections.llm``. Empty: only the planner knows the model, and no recipe trains it."""

    source: str = ""
    """Where the facts come from."""

    num_layers: Size
    """Decoder layers, without the layers for multi-token prediction."""

    hidden_size: Size
    """Width of the residual stream."""

    ffn_hidden_size: Size
    """Inner width of a dense feed-forward block."""

    num_attention_heads: Size
    """Query heads."""

    num_query_groups: Size
    """Key and value heads; equal to ``num_attention_heads`` without grouped-query attention."""

    kv_channels: Size
    """Width of one attention head."""

    vocab_size: Size
    """Entries of the published tokenizer, before Megatron pads the vocabulary."""

    seq_length: Size
    """Tokens of a training sequence."""

    max_position_embeddings: Size
    """The longest sequence that the published model was trained on, in tokens."""

    gated_linear_unit: bool = True
    """Whether the feed-forward block multiplies its activation by a second projection (SwiGLU, GeGLU)."""

    activation_func: Activation = Activation.silu
    """The nonlinearity of the feed-forward block."""

    normalization: Normalization = Normalization.RMSNorm
    """The normalization layer."""

    layernorm_epsilon: Positive = 1e-5
    """The number that a norm adds to the variance."""

    add_bias_linear: bool = False
    """Whether the linear layers have biases."""

    add_qkv_bias: bool = False
    """Whether the query, key and value projections have biases, whatever ``add_bias_linear`` is."""

    qk_layernorm: bool = False
    """Whether queries and keys are normalized before attention."""

    qk_l2_norm: bool = False
    """Whether queries and keys are divided by their root mean square, without weights (Llama 4 Scout)."""

    softmax_type: SoftmaxType = SoftmaxType.vanilla
    """The softmax of attention."""

    attn_logit_softcapping: NonNegative = 0.0
    """The bound of the scores before the softmax, c * tanh(score / c); 0: there is none (Gemma 2)."""

    final_logit_softcapping: NonNegative = 0.0
    """The same of the logits."""

    query_pre_attn_scalar: Count = 0
    """The square of what scores are divided by; 0: the width of a head (Gemma 2)."""

    post_layernorm: bool = False
    """Whether the outputs of attention and of the feed-forward block are normalized too (Gemma 2 and 3)."""

    share_embeddings_and_output_weights: bool = False
    """Whether the output layer is the transposed embedding."""

    position_embedding_type: PositionEmbedding = PositionEmbedding.rope
    """How positions enter the model."""

    rotary_base: Positive = 10000.0
    """The base of the rotary frequencies (theta)."""

    rotary_base_local: NonNegative = 0.0
    """The base in the layers with a sliding window; 0: that of the others (Gemma 3)."""

    rotary_percent: Fraction = 1.0
    """The part of each head that is rotated."""

    rope_scaling: RopeScaling = RopeScaling.none
    """How NeMo's class scales the frequencies of rotary embeddings, from the first step on."""

    rope_scaling_factor: NonNegative = 0.0
    """The factor of that scaling; 1 trains without it, as models are trained before their context is extended."""

    make_vocab_size_divisible_by: Size = 128
    """Megatron pads the vocabulary to a multiple of this number times the tensor-parallel size."""

    pad_vocab: bool = True
    """False: NeMo's class states the vocabulary size itself and does not pad it."""

    init_method_std: NonNegative = 0.02
    """Standard deviation of the initial weights."""

    hidden_dropout: Fraction = 0.0
    """The part of the outputs of a block that training drops."""

    attention_dropout: Fraction = 0.0
    """The part of attention's weights that training drops."""

    num_moe_experts: Count = 0
    """Experts of a mixture-of-experts layer; 0: a dense model."""

    moe_router_topk: Count = 0
    """Experts that each token visits."""

    moe_router_topk_scaling_factor: NonNegative = 0.0
    """What the weights of a token's experts are multiplied by; 0: nothing (``routed_scaling_factor``)."""

    moe_ffn_hidden_size: Count = 0
    """Inner width of one expert."""

    moe_shared_expert_intermediate_size: Count = 0
    """Inner width of the expert that every token visits; 0: there is none."""

    num_dense_layers: Count = 0
    """Leading layers without experts (``first_k_dense_replace`` of DeepSeek's config.json)."""

    mtp_num_layers: Count = 0
    """Layers for multi-token prediction, on the last pipeline stage, each with its own loss (arXiv:2412.19437, 2.2)."""

    mtp_loss_scaling_factor: NonNegative = 0.1
    """Weight of the loss of multi-token prediction."""

    moe_every: Size = 1
    """After the leading dense layers, every n-th layer holds experts (``interleave_moe_layer_step`` of Llama 4)."""

    moe_router_load_balancing_type: LoadBalancing = LoadBalancing.aux_loss
    """Over what the load-balancing loss counts tokens."""

    moe_aux_loss_coeff: NonNegative = 0.0
    """Weight of the load-balancing loss."""

    moe_router_enable_expert_bias: bool = False
    """Whether the router balances its experts with a bias that each step corrects (arXiv:2408.15664)."""

    moe_router_bias_update_rate: NonNegative = 0.001
    """How much a step corrects that bias."""

    moe_router_num_groups: Count = 0
    """Groups of experts for group-limited routing; 0: the router chooses among all experts."""

    moe_router_group_topk: Count = 0
    """Groups that a token's experts may come from."""

    q_lora_rank: Count = 0
    """Multi-latent attention: width of the compressed queries; 0: queries are not compressed."""

    kv_lora_rank: Count = 0
    """Multi-latent attention: width of the compressed keys and values; 0: ordinary attention."""

    qk_head_dim: Count = 0
    """Multi-latent attention: width of a query and key head without positions."""

    qk_pos_emb_head_dim: Count = 0
    """Multi-latent attention: width of the rotary part of a query and key head."""

    v_head_dim: Count = 0
    """Multi-latent attention: width of a value head."""

    window_size: Count = 0
    """Sliding-window attention: keys that a query sees, its own included; 0: all of them."""

    window_every: Size = 1
    """With a window, every n-th layer sees all keys; 1: no layer does."""

    hybrid_override_pattern: str = ""
    """One symbol a layer of a hybrid: M (Mamba-2), * (attention), - (dense feed-forward), E (experts). Empty: no
    hybrid.
    """

    mamba_num_heads: Count = 0
    """Heads of a Mamba-2 layer."""

    mamba_head_dim: Size = 64
    """Channels of a Mamba-2 head."""

    mamba_state_dim: Size = 128
    """Size of the state of a Mamba-2 channel."""

    mamba_num_groups: Size = 8
    """Groups of Mamba-2 heads that share B and C."""

    moe_latent_size: Count = 0
    """Width at which experts compute and tokens travel (LatentMoE of Nemotron 3); 0: the hidden size."""

    @property
    def is_moe(self) -> bool:
        """Whether the model has experts."""
        return self.num_moe_experts > 0

    @property
    def is_mla(self) -> bool:
        """Whether the model uses multi-latent attention."""
        return self.kv_lora_rank > 0

    @property
    def tied(self) -> bool:
        """Whether embedding and output layer share their weights."""
        return self.share_embeddings_and_output_weights

    @property
    def shape(self) -> LayerShape:
        """What decides the kind of each layer."""
        first_experts = self.num_dense_layers if self.is_moe else self.num_layers
        return LayerShape(
            num_layers=self.num_layers,
            pattern=self.hybrid_override_pattern,
            first_experts=first_experts,
            moe_every=self.moe_every,
            window_size=self.window_size,
            window_every=self.window_every,
        )

    def layer_is_moe(self, layer: int) -> bool:
        """Whether the 0-based decoder layer holds experts."""
        return layer_kinds(self.shape)[layer].feed_forward is FeedForward.experts

    @property
    def mtp_kind(self) -> LayerKind:
        """A layer for multi-token prediction: attention, and the feed-forward block of the model's last layer."""
        return LayerKind(Mixer.attention, layer_kinds(self.shape)[-1].feed_forward)

    @property
    def has_dense_layers(self) -> bool:
        """Whether any layer has a dense feed-forward block."""
        if self.hybrid_override_pattern:
            return "-" in self.hybrid_override_pattern
        return not self.is_moe or self.num_dense_layers > 0 or self.moe_every > 1

    @property
    def mamba_width(self) -> int:
        """Channels of a Mamba-2 layer's inner state (Megatron-Core's ``d_inner``)."""
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def mamba_projection(self) -> int:
        """Outputs of a Mamba-2 layer's first projection: gate and x, B and C of every group, dt of every head."""
        return 2 * self.mamba_width + 2 * self.mamba_num_groups * self.mamba_state_dim + self.mamba_num_heads

    def padded_vocab_size(self, tp: int) -> int:
        """Rows of the vocabulary after padding to ``make_vocab_size_divisible_by * tp`` (NeMo:
        _vocab_size_with_padding).
        """
        if not self.pad_vocab:
            return self.vocab_size
        multiple = self.make_vocab_size_divisible_by * tp
        return -(-self.vocab_size // multiple) * multiple

    def rope_scaling_error(self) -> tuple[str, str] | None:
        """What is wrong with the factor of RoPE's scaling and how to fix it; None where nothing is."""
        scales, factor = self.rope_scaling is not RopeScaling.none, self.rope_scaling_factor
        if scales == (factor >= 1):
            return None
        if scales:
            return f"model.rope_scaling_factor={factor:g} is below 1", "Use 1 to train without scaling, or more."
        return (
            f"model.rope_scaling_factor={factor:g}, and {self.name} has no scaling of RoPE",
            "Use model.rope_scaling_factor=0.",
        )

    def shape_error(self) -> str:
        """What is wrong with sizes that need each other, as a sentence; empty where nothing is."""
        needed = {
            "multi-latent attention (model.kv_lora_rank)": ("qk_head_dim", "v_head_dim") if self.is_mla else (),
            "experts (model.num_moe_experts)": ("moe_router_topk",) if self.is_moe else (),
            "Mamba-2 layers (model.hybrid_override_pattern)": ("mamba_num_heads",)
            if "M" in self.hybrid_override_pattern
            else (),
        }
        for what, keys in needed.items():
            for key in keys:
                if not getattr(self, key):
                    return f"model.{key}=0 is not legal: {self.name} has {what}, which needs at least 1."
        return self._pattern_error()

    def _pattern_error(self) -> str:
        pattern = self.hybrid_override_pattern
        if not pattern or (len(pattern) == self.num_layers and set(pattern) <= set(HYBRID_SYMBOLS)):
            return ""
        return (
            f"model.hybrid_override_pattern={pattern} is not legal: it must be "
            f"model.num_layers={self.num_layers} of the "
            f"symbols {' '.join(HYBRID_SYMBOLS)}."
        )
