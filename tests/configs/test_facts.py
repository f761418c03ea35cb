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
    "window_every": "no recipe here has windows",
    "mtp_num_layers": "NeMo's recipe sets it where its class does not; recipes/upstream shows where ours differs",
    "mtp_loss_scaling_factor": "as mtp_num_layers",
}

FEWEST_FACTS = 15  # of a model that NeMo's class must state, so that the comparison cannot pass by comparing nothing


@pytest.mark.nemo
def test_every_fact_equals_nemos_class(in_child: Any) -> None:
    names = [n for n in configs.model_names() if configs.model(n).nemo_config and not n.endswith("_tiny")]
    assert names

    def read() -> dict[str, dict[str, Any]]:
        from nemo.collections import llm

        out = {}
        for name in names:
            cls = getattr(llm, configs.model(name).nemo_config)
            fields = {f.name for f in dataclasses.fields(cls)}
            off = {
                f: False
                for f in ("apply_rope_fusion", "gradient_accumulation_fusion", "moe_permute_fusion", "moe_grouped_gemm")
                if f in fields
            }
            built = cls(**off)
            values = {f: getattr(built, f) for f in fields}
            plain = (int, float, str, list, type(None))
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
            compared += 1
            if (ours or None) != (theirs or None):
                wrong.append((name, fact.name, ours, theirs))
        frequency = real[name]["moe_layer_freq"]
        if model.is_moe:
            assert real[name]["moe_router_topk"] == model.moe_router_topk
            layers = frequency if isinstance(frequency, list) else [1] * model.num_layers
            assert [int(model.layer_is_moe(i)) for i in range(model.num_layers)] == layers
        if real[name].get("vocab_size"):
            assert real[name]["vocab_size"] == model.vocab_size
    assert not wrong
    assert compared > FEWEST_FACTS * len(names)
