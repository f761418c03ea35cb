"""A Hugging Face config.json, or the folder of a model that has one: a model, whose layout the planner chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from slipway import configs
from slipway.configs import Model, Refusal, Spec
from slipway.configs.load import override
from slipway.configs.planned import starting_gpus
from slipway.configs.schema.layers import HYBRID_SYMBOLS
from slipway.configs.schema.model import Activation, Normalization, PositionEmbedding
from slipway.launch.foreign.megatron.run import any_adam
from slipway.launch.foreign.reading import USUAL_GPU, File, Reading, Request, require_layers, require_whole, run_name

NAME = "Hugging Face config.json"
USUAL_LENGTH = 8192  # tokens of a training sequence, of a model with more positions
_IRRELEVANT = frozenset(
    (
        "architectures model_type torch_dtype dtype transformers_version _name_or_path use_cache auto_map "
        "bos_token_id eos_token_id pad_token_id initializer_range rms_norm_eps layer_norm_eps "
        "layer_norm_epsilon norm_eps norm_epsilon attention_dropout hidden_dropout attn_pdrop embd_pdrop "
        "resid_pdrop hidden_dropout_prob pretraining_tp rope_scaling rope_theta rope_parameters "
        "router_aux_loss_coef output_router_logits router_jitter_noise norm_topk_prob scoring_func "
        "topk_method topk_group n_group routed_scaling_factor aux_loss_alpha seq_aux ep_size "
        "initial_context_length swiglu_limit quantization_config max_window_layers use_mamba_kernels "
        "mamba_proj_bias residual_in_fp32 rescale_prenorm_residual time_step_floor time_step_limit "
        "time_step_max time_step_min mamba_hidden_act mlp_hidden_act num_logits_to_keep _attn_implementation "
        "attn_implementation expand chunk_size conv_kernel use_conv_bias use_bias rope_interleaved "
        "rotary_emb_base partial_rotary_factor cache_implementation attn_logit_softcapping "
        "final_logit_softcapping query_pre_attn_scalar attention_multiplier for_llm_compressor "
        "attn_temperature_tuning attn_scale floor_scale no_rope_layers router_bias_update_rate "
        "task_specific_params summary_activation summary_first_dropout summary_proj_to_labels summary_type "
        "summary_use_proj n_ctx "
    ).split()
)
"""Keys of published config.json files that change neither sizes nor costs."""

_TIED = ("gpt2", "gemma", "gemma2", "gemma3", "gemma3_text", "bloom", "opt")  # model types that are tied by default
_BIASED = ("gpt2", "bloom", "opt", "gpt_neox")  # model types with biases in every linear layer
_QKV_BIASED = ("qwen2", "qwen2_moe")  # with biases of queries, keys and values by default
_QK_NORMED = ("qwen3", "qwen3_moe", "gemma3", "gemma3_text", "glm4_moe")
_MAMBA_FEED_FORWARD = ("nemotron_h",)  # model types whose attention has no positions
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu2": "squared_relu"}  # every other one is priced as gelu


class _Config:
    """The keys of a config.json; reading one marks it as used."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        inner = content.get("text_config")
        self._content = {**content, **inner} if isinstance(inner, dict) else dict(content)
        self._content.pop("text_config", None)
        self.where = where
        self.used: set[str] = set()

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value of the first key that is there and not null."""
        for key in keys:
            if self._content.get(key) is not None:
                self.used.add(key)
                return self._content[key]
        return default

    def size(self, *keys: str, default: int | None = None) -> int:
        """A whole number.

        Raises:
            Refusal: it is something else, or missing without a default.
        """
        value = self.get(*keys, default=default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise Refusal(f"{self.where} does not say {keys[0]} as a whole number", "Give the config.json of a model.")
        return value

    @property
    def rest(self) -> list[str]:
        """The keys that were not read."""
        return [key for key in self._content if key not in self.used]


def recognizes(file: File) -> bool:
    """Whether the file is JSON with a model's sizes."""
    return file.path.suffix == ".json"


def read(file: File, request: Request) -> Reading:
    """The model, on the GPUs that gpus= gives, else on as many as hold its states."""
    require_whole(file)
    try:
        content = json.loads(file.text)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{file.path} is not JSON: {error}", "Correct it.") from None
    if not isinstance(content, dict):
        raise Refusal(f"{file.path} does not hold a mapping of keys to values", "Give the config.json of a model.")
    config = _Config(content, file.name)
    model = _model(config, file)
    assumed: list[str] = []
    given = {key.partition("=")[0] for key in request.overrides}
    if "layout.seq_length" not in given:
        assumed.append(f"sequences of {model.seq_length:,} tokens; layout.seq_length= gives another length")
    gpus = starting_gpus({key: getattr(model, key) for key in _SIZES})
    if not given & {"gpus", "nodes"}:
        assumed.append(f"{gpus} GPUs, whose memory holds its training states; gpus= gives another number")
    if not given & {"gpu", "cluster"}:
        assumed.append(f"{USUAL_GPU.upper()}; gpu= gives another")
    spec = Spec(
        name=model.name,
        gpus=gpus,
        model=model,
        gpu=configs.gpu(USUAL_GPU),
        precision=configs.precision("bf16"),
        optim=any_adam(),
        data=configs.Data(name="mock"),
        cluster=configs.Cluster(name="file", executor="local"),
    )
    understood = {key: config.get(key) for key in sorted(config.used)}
    rest = [key for key in config.rest if key not in _IRRELEVANT]
    parts = [key for key in rest if key.endswith("_config")]
    return Reading(
        kind=NAME,
        version=f"transformers {content.get('transformers_version', 'of any version')}",
        path=file.path,
        resolved=override(spec, request.overrides, layout_given=False),
        used=[f"{key} {_short(value)}" for key, value in understood.items()],
        irrelevant=[key for key in config.rest if key in _IRRELEVANT],
        unknown=[f"{key} {_short(config.get(key))}" for key in rest if key not in parts],
        not_modelled=parts,
        assumed=assumed,
    )


_SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_moe_experts", "moe_ffn_hidden_size", "vocab_size")
_LONGEST_SHOWN = 40  # characters of a value


def _short(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, list | dict) else str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _model(config: _Config, file: File) -> Model:
    """The architecture that the keys describe."""
    kind = str(config.get("model_type", default=""))
    layers, hidden = config.size("num_hidden_layers", "n_layer", "num_layers"), config.size("hidden_size", "n_embd")
    heads = config.size("num_attention_heads", "n_head")
    if not layers or not hidden or not heads:
        raise Refusal(f"{file.name} has a model without layers, width or heads", "Give the config.json of a model.")
    require_layers(layers, file.name)
    experts = config.size("num_local_experts", "num_experts", "n_routed_experts", default=0)
    ffn = config.size("intermediate_size_mlp", "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    act = str(config.get("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act", default="silu"))
    biased = kind in _BIASED or bool(config.get("mlp_bias", default=False))
    latent = bool(config.get("kv_lora_rank"))
    head = config.size("v_head_dim", default=0) if latent else hidden // heads
    positions = config.size("max_position_embeddings", "n_positions", default=USUAL_LENGTH)
    rotary = PositionEmbedding.none if kind in _MAMBA_FEED_FORWARD else PositionEmbedding.rope
    return Model(
        name=run_name(file),
        family="huggingface",
        source=str(file.path),
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn or 4 * hidden,
        num_attention_heads=heads,
        num_query_groups=config.size("num_key_value_heads", "num_kv_heads", default=heads),
        kv_channels=config.size("head_dim", "attention_head_dim", default=max(head, 1)),
        vocab_size=config.size("vocab_size"),
        seq_length=min(positions, USUAL_LENGTH),
        max_position_embeddings=positions,
        gated_linear_unit=kind not in _BIASED and "relu2" not in act,
        activation_func=Activation(_ACTIVATIONS.get(act, "gelu")),
        normalization=Normalization.LayerNorm if kind in _BIASED else Normalization.RMSNorm,
        add_bias_linear=biased,
        add_qkv_bias=biased or bool(config.get("attention_bias", default=kind in _QKV_BIASED)),
        qk_layernorm=latent or kind in _QK_NORMED or bool(config.get("use_qk_norm", "qk_layernorm", default=False)),
        share_embeddings_and_output_weights=bool(config.get("tie_word_embeddings", default=kind in _TIED)),
        position_embedding_type=PositionEmbedding.learned_absolute if kind in ("gpt2", "opt") else rotary,
        mtp_num_layers=config.size("num_nextn_predict_layers", "mtp_num_hidden_layers", default=0),
        **_experts(config, experts, layers),
        **_latent_attention(config),
        **_windows(config, layers),
        **_hybrid(config, file),
    )


def _experts(config: _Config, experts: int, layers: int) -> dict[str, Any]:
    """The fields of :class:`Model` for a mixture of experts."""
    if not experts:
        return {}
    width = config.size("moe_intermediate_size", "intermediate_size")
    shared = config.size("n_shared_experts", "num_shared_experts", default=0) * width
    shared = config.size("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", default=shared)
    if config.get("model_type") == "llama4_text":
        shared = width
    every = config.size("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq", default=1) or 1
    dense = config.size("first_k_dense_replace", default=0)
    only_dense = config.get("mlp_only_layers", default=[])
    if only_dense and only_dense == list(range(len(only_dense))):
        dense = len(only_dense)
    elif only_dense:
        raise Refusal(f"{config.where}: mlp_only_layers {only_dense} cannot be planned", "Use leading layers.")
    return {
        "num_moe_experts": experts,
        "moe_router_topk": config.size("num_experts_per_tok", "experts_per_token", "moe_topk", default=2),
        "moe_ffn_hidden_size": width,
        "moe_shared_expert_intermediate_size": shared,
        "moe_latent_size": config.size("moe_latent_size", default=0),
        "num_dense_layers": min(dense, layers),
        "moe_every": every,
    }


def _latent_attention(config: _Config) -> dict[str, Any]:
    """The fields of :class:`Model` for multi-latent attention."""
    if not config.get("kv_lora_rank"):
        return {}
    return {
        "q_lora_rank": config.size("q_lora_rank", default=0),
        "kv_lora_rank": config.size("kv_lora_rank"),
        "qk_head_dim": config.size("qk_nope_head_dim"),
        "qk_pos_emb_head_dim": config.size("qk_rope_head_dim"),
        "v_head_dim": config.size("v_head_dim"),
    }


def _windows(config: _Config, layers: int) -> dict[str, Any]:
    """The fields of :class:`Model` for sliding windows."""
    window = config.get("sliding_window", default=0)
    kinds = config.get("layer_types", default=[])
    every = config.get("sliding_window_pattern", default=0)
    if not window or config.get("use_sliding_window", default=True) is False:
        return {}
    if not kinds:
        return {"window_size": int(window), "window_every": int(every) or 1}
    full = [word == "full_attention" for word in kinds[:layers]]
    if all(full):
        return {}
    for step in range(1, layers + 1):
        if full == [step > 1 and (i + 1) % step == 0 for i in range(len(full))]:
            return {"window_size": int(window), "window_every": step}
    raise Refusal(f"{config.where}: layer_types cannot be planned", "Use full attention in every n-th layer.")


def _hybrid(config: _Config, file: File) -> dict[str, Any]:
    """The fields of :class:`Model` for a hybrid of Mamba-2 and attention."""
    pattern = str(config.get("hybrid_override_pattern", default=""))
    if not pattern:
        return {}
    if strange := set(pattern) - set(HYBRID_SYMBOLS):
        raise Refusal(
            f"{file.name}: hybrid_override_pattern has {sorted(strange)[0]!r}, which cannot be planned",
            f"Its symbols are {' '.join(HYBRID_SYMBOLS)}.",
        )
    return {
        "hybrid_override_pattern": pattern,
        "mamba_num_heads": config.size("mamba_num_heads"),
        "mamba_head_dim": config.size("mamba_head_dim", default=64),
        "mamba_state_dim": config.size("ssm_state_size", "mamba_state_dim", default=128),
        "mamba_num_groups": config.size("n_groups", "mamba_n_groups", default=8),
    }
