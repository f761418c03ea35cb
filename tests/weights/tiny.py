"""Tiny random models of transformers, one for each class of model that can be converted, and a tokenizer for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCABULARY = 500  # no multiple of 128: Megatron-Core pads it
SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}  # ids 0, 1, 2: not those of any default

_BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
_YARN = {
    "rope_type": "yarn",
    "type": "yarn",
    "factor": 40.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
_DEEPSEEK = (
    _BASE
    | _EXPERTS
    | {
        "num_key_value_heads": 4,
        "n_routed_experts": 8,
        "num_experts_per_tok": 4,
        "first_k_dense_replace": 1,
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
    }
)
_LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Tiny:
    """One model.

    Attributes:
        family: as Slipway calls it.
        config_class: transformers' class of its configuration.
        arguments: of the configuration.
        recipe: one whose models are of this kind; empty: there is none, and NeMo's class is ``nemo``.
    """

    family: str
    config_class: str
    arguments: dict[str, Any]
    recipe: str


TINY = {
    "llama2": Tiny("llama", "LlamaConfig", _BASE | {"num_key_value_heads": 4}, "llama2_7b"),
    "llama3": Tiny("llama", "LlamaConfig", _BASE | {"rope_theta": 500000.0, "rms_norm_eps": 1e-5}, "llama3_8b"),
    "llama31": Tiny(
        "llama",
        "LlamaConfig",
        _BASE | {"rope_theta": 500000.0, "rope_scaling": _LLAMA31, "max_position_embeddings": 131072},
        "llama31_8b",
    ),
    "llama32": Tiny(
        "llama",
        "LlamaConfig",
        _BASE
        | {"rope_scaling": _LLAMA31 | {"factor": 32.0}, "max_position_embeddings": 131072, "tie_word_embeddings": True},
        "llama32_1b",
    ),
    "mistral": Tiny("mistral", "MistralConfig", _BASE | {"sliding_window": 16}, "mistral_7b"),
    "mistral_nemo": Tiny(
        "mistral",
        "MistralConfig",
        _BASE | {"sliding_window": None, "head_dim": 32, "rope_theta": 1e6},
        "mistral_nemo_12b",
    ),
    "qwen2": Tiny("qwen2", "Qwen2Config", _BASE | {"rope_theta": 1e6}, "qwen2_7b"),
    "qwen2_tied": Tiny("qwen2", "Qwen2Config", _BASE | {"rope_theta": 1e6, "tie_word_embeddings": True}, "qwen25_500m"),
    "gemma": Tiny(
        "gemma",
        "GemmaConfig",
        _BASE | {"head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True},
        "gemma_2b",
    ),
    "gemma2": Tiny(
        "gemma2",
        "Gemma2Config",
        _BASE | {"head_dim": 32, "query_pre_attn_scalar": 256, "sliding_window": 16, "tie_word_embeddings": True},
        "gemma2_2b",
    ),
    "gemma3": Tiny(
        "gemma3",
        "Gemma3TextConfig",
        _BASE
        | {
            "num_hidden_layers": 6,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
        },
        "gemma3_1b",
    ),
    "phi3": Tiny(
        "phi3", "Phi3Config", _BASE | {"num_key_value_heads": 4, "sliding_window": 16}, "phi3_mini_4k_instruct"
    ),
    "starcoder": Tiny(
        "starcoder",
        "GPTBigCodeConfig",
        {
            "vocab_size": VOCABULARY,
            "n_positions": 64,
            "n_embd": 64,
            "n_inner": 128,
            "n_layer": 2,
            "n_head": 4,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
            "initializer_range": 0.08,
        },
        "starcoder_15b",
    ),
    "starcoder2": Tiny(
        "starcoder2", "Starcoder2Config", _BASE | {"sliding_window": 16, "tie_word_embeddings": True}, "starcoder2_3b"
    ),
    "qwen3": Tiny("qwen3", "Qwen3Config", _BASE | {"head_dim": 32, "rope_theta": 1e6}, "qwen3_8b"),
    "qwen3_moe": Tiny(
        "qwen3_moe",
        "Qwen3MoeConfig",
        _BASE | _EXPERTS | {"head_dim": 32, "num_experts": 8, "norm_topk_prob": True, "rope_theta": 1e6},
        "qwen3_30b_a3b",
    ),
    "mixtral": Tiny("mixtral", "MixtralConfig", _BASE | {"num_local_experts": 4, "rope_theta": 1e6}, "mixtral_8x7b"),
    "nemotron": Tiny("nemotron", "NemotronConfig", _BASE | {"head_dim": 16}, "nemotron4_15b"),
    "deepseek_v3": Tiny(
        "deepseek_v3",
        "DeepseekV3Config",
        _BASE
        | _EXPERTS
        | {
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "max_position_embeddings": 163840,
            "rope_scaling": _YARN,
        },
        "deepseek_v3",
    ),
    "deepseek_v2": Tiny(
        "deepseek_v2",
        "DeepseekV2Config",
        _DEEPSEEK
        | {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0},
        "deepseek_v2",
    ),
    "deepseek_v2_lite": Tiny(
        "deepseek_v2",
        "DeepseekV2Config",
        _DEEPSEEK | {"q_lora_rank": None, "topk_method": "greedy"},
        "deepseek_v2_lite",
    ),
    "moonlight": Tiny(
        "deepseek_v3",
        "DeepseekV3Config",
        _DEEPSEEK | {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.446},
        "moonlight_16b_a3b",
    ),
    "gpt_oss": Tiny(
        "gpt_oss",
        "GptOssConfig",
        _BASE
        | {
            "intermediate_size": 64,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "max_position_embeddings": 131072,
        },
        "gpt_oss_20b",
    ),
    "llama_wide_heads": Tiny("llama", "LlamaConfig", _BASE | {"head_dim": 32}, "llama3_8b"),
}


def make(name: str, folder: Path, shard: str = "5GB", **changed: Any) -> None:
    """Save a random model and its tokenizer as transformers does.

    Args:
        shard: size of the largest file.
        changed: arguments of the configuration that differ.
    """
    import torch
    import tqdm  # type: ignore[import-untyped]
    import transformers
    from transformers import AutoModelForCausalLM

    tqdm.tqdm.monitor_interval = 0  # no threads: other tests fork this process
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tiny = TINY[name]
    config = getattr(transformers, tiny.config_class)(**(tiny.arguments | changed))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # norms and biases that differ from their initial values, so that a lost one is seen
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.1)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer().save_pretrained(folder)


def tokenizer() -> Any:
    """A byte-level tokenizer whose special tokens are the first ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["a slipway is where a ship is built, checked and launched. " * 4], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)


def logits_of_transformers(folder: Path, tokens: Any) -> Any:
    """The logits of a saved model, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(tokens).logits
