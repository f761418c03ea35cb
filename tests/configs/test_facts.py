"""The YAML cannot drift from what trains: every model fact equals the field of the NeMo class that the recipe uses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from slipway import configs

# our name -> NeMo's, where they differ
RENAMED = {"moe_ffn_hidden_size": "moe_ffn_hidden_size", "activation_func": "activation_func"}
# facts that NeMo's class does not carry or carries for another purpose, and why
EXEMPT = {
    "name": "ours",
    "family": "ours",
    "nemo_config": "ours",
    "source": "ours",
    "vocab_size": "NeMo takes it from the tokenizer; compared where its class names one",
    "seq_length": "the length the recipe trains at; NeMo's classes hold the longest",
    "max_position_embeddings": "the published limit; Mixtral's class holds the training length",
    "num_dense_layers": "NeMo spells it moe_layer_freq; compared below",
    "pad_vocab": "how NeMo's class treats its vocabulary; tested by the exact parameter counts",
    "moe_router_topk": "NeMo's dense classes carry a default of 2 that is not used",
    "window_every": "NeMo spells it in the attention of its classes",
    "window_size": "compared below: NeMo has it as a pair or as a number",
    "rotary_base": "compared below: NeMo's Gemma 3 has a pair",
    "rotary_base_local": "as rotary_base",
    "query_pre_attn_scalar": "compared where NeMo's class has it",
    "mtp_num_layers": "NeMo's recipe sets it where its class does not; recipes/upstream shows where ours differs",
    "mtp_loss_scaling_factor": "as mtp_num_layers",
    "rope_scaling": "NeMo spells it in the class; its factor is compared below",
    "moe_router_load_balancing_type": "compared for models with experts; the dense classes carry a default",
}
# the class of NeMo that describes a model which only the planner knows here
PLANNED = {
    "gpt3_20b": "GPTConfig20B",
    "gpt3_5b": "GPTConfig5B",
    "llama2_34b": "CodeLlamaConfig34B",
    "llama4_maverick": "Llama4Experts128Config",
    "llama4_scout": "Llama4Experts16Config",
    "nemotron_h_56b": "NemotronHConfig56B",
}
# where a planned model's file rightly differs from NeMo's class: (model, fact) -> NeMo's value
DIFFERENT = {
    ("llama2_34b", "rotary_base"): (1_000_000, "CodeLlama's, which was trained on from Llama 2's 10,000"),
    ("llama4_scout", "rope_scaling_factor"): (8.0, "the released config.json has 16"),
    ("llama4_maverick", "rope_scaling_factor"): (8.0, "not used: the class says rope_scaling=False"),
    ("gpt3_20b", "add_qkv_bias"): (False, "in NeMo add_bias_linear brings it"),
    ("gpt3_5b", "add_qkv_bias"): (False, "in NeMo add_bias_linear brings it"),
    **{(f"gpt3_{size}", f"{part}_dropout"): (0.1, "the calibration of a published run says whether it dropped")
       for size in ("5b", "20b") for part in ("hidden", "attention")},
    ("nemotron_h_56b", "activation_func"): ("<lambda>", "squared ReLU"),
}  # fmt: skip
GPT_OSS = {
    "position_embedding_type": "yarn",  # ours is rope with rope_scaling=yarn
    "activation_func": "quick_gelu",  # a gated sigmoid unit; the planner counts it as silu
    "add_qkv_bias": False,  # in NeMo add_bias_linear brings it
}
# where a recipe's model differs from NeMo's class as the released model does: (model, fact) -> NeMo's value
RELEASED: dict[tuple[str, str], object] = {
    ("deepseek_v2_lite", "kv_channels"): 16,  # latent attention has no use for it
    ("gemma3_1b", "rope_scaling_factor"): 1.0,  # a factor of 1 scales nothing
    ("gemma3_1b", "qk_layernorm"): False,  # NeMo's layers have them whatever it says
    **{(f"{name}_{size}", "layernorm_epsilon"): 1e-5 for name in ("gemma", "codegemma") for size in ("2b", "7b")},
    **{(f"{name}_{size}", "share_embeddings_and_output_weights"): False
       for name in ("qwen2", "qwen25") for size in ("500m", "1p5b")},
    **{(f"starcoder2_{size}", "share_embeddings_and_output_weights"): False for size in ("3b", "7b")},
    **{(f"starcoder2_{size}", "window_size"): 0 for size in ("3b", "7b", "15b")},
    ("phi3_mini_4k_instruct", "window_size"): 0,
    ("starcoder_15b", "share_embeddings_and_output_weights"): False,
    ("starcoder_15b", "hidden_dropout"): 0.2,
    ("starcoder_15b", "attention_dropout"): 0.2,
    **{(f"gpt_oss_{size}", fact): theirs for size in ("20b", "120b") for fact, theirs in GPT_OSS.items()},
}  # fmt: skip
# models whose sizes are set on the class of another: there is nothing to compare with
RESIZED = ("moonlight_16b_a3b",)
# a model whose facts are the defaults of a transformers class, and that class's type
DEFAULTS_OF_TRANSFORMERS = {
    "deepseek_v3": "deepseek_v3",
    "gpt_oss_120b": "gpt_oss",
    "llama4_scout": "llama4_text",
    "mixtral_8x7b": "mixtral",
}
TRANSFORMERS_NAMES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "rotary_base": "rope_theta",
    "layernorm_epsilon": "rms_norm_eps",
    "moe_router_topk": "num_experts_per_tok",
    "q_lora_rank": "q_lora_rank",
    "kv_lora_rank": "kv_lora_rank",
    "qk_head_dim": "qk_nope_head_dim",
    "qk_pos_emb_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
    "moe_router_num_groups": "n_group",
    "moe_router_group_topk": "topk_group",
    "num_dense_layers": "first_k_dense_replace",
    "qk_l2_norm": "use_qk_norm",
    "window_size": "sliding_window",
    "share_embeddings_and_output_weights": "tie_word_embeddings",
}

FEWEST_FACTS = 15  # of a model that NeMo's class must state, so that the comparison cannot pass by comparing nothing


@pytest.mark.nemo
def test_every_fact_equals_nemos_class(in_child: Any) -> None:
    names = [n for n in configs.model_names() if configs.model(n).nemo_config and not n.endswith("_tiny")]
    names = [n for n in names if n not in RESIZED]
    assert names

    def read() -> dict[str, dict[str, Any]]:
        from nemo.collections import llm

        out = {}
        for name in names:
            cls = getattr(llm, configs.model(name).nemo_config)
            fields = {f.name for f in dataclasses.fields(cls)}
            off = {
                f: False
                for f in (
                    "apply_rope_fusion",
                    "gradient_accumulation_fusion",
                    "moe_permute_fusion",
                    "moe_grouped_gemm",
                    "bias_activation_fusion",
                )
                if f in fields
            }
            built = cls(**off)
            values = {f: getattr(built, f) for f in fields}
            plain = (int, float, str, list, tuple, type(None))
            out[name] = {
                k: getattr(v, "__name__", "") if callable(v) else v
                for k, v in values.items()
                if isinstance(v, plain) or callable(v)
            }
        return out

    real = in_child(read)
    wrong = []
    compared = 0
    for name in names:
        model = configs.model(name)
        for fact in dataclasses.fields(model):
            if fact.name in EXEMPT or fact.name not in real[name]:
                continue
            ours: Any = getattr(model, fact.name)
            ours = getattr(ours, "value", ours)
            theirs = real[name][fact.name]
            theirs = "gelu" if theirs == "openai_gelu" else theirs  # the tanh form, which fused GELU is too
            compared += 1
            if (ours or None) != (theirs or None) and RELEASED.get((name, fact.name), ours) != theirs:
                wrong.append((name, fact.name, ours, theirs))
        window, bases = real[name].get("window_size"), real[name]["rotary_base"]
        window = (window[0] if isinstance(window, list | tuple) else window) or 0
        if window != RELEASED.get((name, "window_size"), model.window_size):
            wrong.append((name, "window_size", model.window_size, window))
        bases = bases if isinstance(bases, list | tuple) else (0, bases)
        if tuple(bases) != (model.rotary_base_local, model.rotary_base):
            wrong.append((name, "rotary_base", (model.rotary_base_local, model.rotary_base), bases))
        factors = ("scale_factor", "rotary_scaling_factor", "yarn_rotary_scaling_factor")
        factor = next((real[name][key] for key in factors if real[name].get(key)), 0)
        assert model.rope_scaling_factor == factor, name
        frequency = real[name]["moe_layer_freq"]
        if model.is_moe:
            assert real[name]["moe_router_topk"] == model.moe_router_topk
            balancing = "global_aux_loss" if model.family == "qwen3" else real[name]["moe_router_load_balancing_type"]
            assert balancing == model.moe_router_load_balancing_type, "Qwen3's report: over the global batch"
            layers = frequency if isinstance(frequency, list) else [1] * model.num_layers
            assert [int(model.layer_is_moe(i)) for i in range(model.num_layers)] == layers
        if real[name].get("vocab_size"):
            assert real[name]["vocab_size"] == model.vocab_size
    assert not wrong
    assert compared > FEWEST_FACTS * len(names)


@pytest.mark.nemo
def test_the_facts_of_planned_models_equal_nemos_and_transformers_classes(in_child: Any) -> None:
    """Against the defaults of the classes, which are the published models'; each exception states its reason."""

    def read() -> dict[str, dict[str, Any]]:
        from nemo.collections import llm
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        out = {name: _defaults(getattr(llm, cls)) for name, cls in PLANNED.items()}
        return out | {f"{kind} of transformers": vars(CONFIG_MAPPING[kind]()) for kind in _TYPES}

    real = in_child(read)
    wrong, compared = [], 0
    for name in PLANNED:
        for fact in dataclasses.fields(configs.model(name)):
            theirs = real[name].get(fact.name)
            if fact.name in EXEMPT or not theirs:  # None: the class leaves it to be computed
                continue
            ours: Any = getattr(configs.model(name), fact.name)
            ours = getattr(ours, "value", ours)
            compared += 1
            if ours != theirs and DIFFERENT.get((name, fact.name), ("", ""))[0] != theirs:
                wrong.append((name, fact.name, ours, theirs))
    for name, kind in DEFAULTS_OF_TRANSFORMERS.items():
        for fact_name, key in TRANSFORMERS_NAMES.items():
            theirs = real[f"{kind} of transformers"].get(key)
            ours = getattr(configs.model(name), fact_name)
            compared += theirs is not None
            if theirs is not None and (ours or None) != (theirs or None):
                wrong.append((name, key, ours, theirs))
    assert not wrong
    assert compared > FEWEST_FACTS * len(PLANNED)


_TYPES = tuple(DEFAULTS_OF_TRANSFORMERS.values())


def _defaults(cls: Any) -> dict[str, Any]:
    """The plain defaults of a dataclass's fields; functions by their name."""
    values = {field.name: field.default for field in dataclasses.fields(cls)}
    plain = {k: getattr(v, "__name__", "") if callable(v) else v for k, v in values.items() if not isinstance(v, type)}
    return {k: v for k, v in plain.items() if isinstance(v, int | float | str | tuple)}


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("kimi_k2", {"rotary_base": 50000.0, "layernorm_epsilon": 1e-6, "rope_scaling_factor": 32.0}),
        ("moonlight_16b_a3b", {"rotary_base": 50000.0, "layernorm_epsilon": 1e-5}),
        ("qwen25_7b", {"rotary_base": 1e6, "layernorm_epsilon": 1e-6}),
        ("llama2_34b", {"rotary_base": 1e4, "layernorm_epsilon": 1e-5}),
        ("mpt_7b", {"position_embedding_type": "alibi", "normalization": "LayerNorm"}),
        ("gpt_oss_120b", {"softmax_type": "learnable", "rope_scaling": "yarn", "rope_scaling_factor": 32.0}),
        ("deepseek_v3", {"max_position_embeddings": 131072, "seq_length": 4096, "rope_scaling_factor": 40.0}),
    ],
)
def test_facts_without_a_class_are_those_of_the_published_config(name: str, facts: dict[str, Any]) -> None:
    """Moonshot's, Qwen's, MosaicML's and OpenAI's config.json; Llama 2's and DeepSeek-V3's papers."""
    assert {key: getattr(configs.model(name), key) for key in facts} == facts


def test_a_sink_of_attention_is_counted() -> None:
    from slipway.planner.parameters import attention

    model = configs.model("gpt_oss_20b")
    plain = dataclasses.replace(model, softmax_type=configs.schema.SoftmaxType.vanilla)
    assert attention(model, 1) - attention(plain, 1) == model.num_attention_heads
