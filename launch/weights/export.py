"""A run's newest checkpoint as Hugging Face weights, read without a GPU, a model or a process group.

The distributed checkpoint holds each tensor whole, with the layers as the first dimension, whatever layout wrote it.
Rows of the fused projections: the query, key and value heads of one group after another (linear_qkv); all gates, then
all up-projections (linear_fc1).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from slipway.configs import Model, Refusal, Spec
from slipway.configs.load import spec_from_record
from slipway.recipes.runtime.checkpoint_files import held
from slipway.recipes.runtime.run_files import RECORD

FAMILIES = ("llama2", "llama3")
DTYPES = ("bfloat16", "float32")
_LAYER = "module.decoder.layers."


def export(run_dir: str, out: str, dtype: str = "bfloat16") -> None:
    """Write the newest complete checkpoint of a run, atomically, as a folder that transformers loads.

    Args:
        run_dir: the run's folder, which holds slipway/recipe.json.
        out: the folder to write.
        dtype: bfloat16 or float32.

    Raises:
        Refusal: no run, no complete checkpoint, a family that is not supported, or a folder that exists.
    """
    run, target = Path(run_dir), Path(out)
    spec = _spec_of(run)
    if dtype not in DTYPES:
        raise Refusal(f"--dtype {dtype} is not legal", f"Use {' or '.join(DTYPES)}.")
    _require_supported(spec)
    if target.exists():
        raise Refusal(f"{target} is already there", "Give another --out.")
    found = held(run / "checkpoints")
    if found.newest is None:
        raise Refusal(f"{run} holds no whole checkpoint", "Train it further, or restore one.")
    model = _model(spec, _read(found.newest / "weights"), dtype)
    partial = target.with_name(target.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    if spec.data.tokenizer and Path(spec.data.tokenizer).is_dir():
        for file in Path(spec.data.tokenizer).glob("*token*"):
            shutil.copy(file, partial)
    partial.rename(target)
    print(f"{target}: {spec.model.name} after step {found.step}, {dtype}, from {found.newest}")


def _spec_of(run: Path) -> Spec:
    record = run / RECORD
    if not record.is_file():
        raise Refusal(f"{run} holds no run", "Give the folder that holds slipway/recipe.json.")
    return spec_from_record(json.loads(record.read_text())["spec"])


def _require_supported(spec: Spec) -> None:
    if spec.model.family not in FAMILIES:
        what = spec.model.family
    elif spec.layout.fsdp.value != "none":
        what = "Megatron-FSDP checkpoints"
    else:
        return
    raise Refusal(
        f"{what} cannot be written as Hugging Face weights here: {', '.join(FAMILIES)} can",
        "Use NeMo's llm.export_ckpt.",
    )


def _read(weights: Path) -> dict[str, Any]:
    """Every model tensor of a checkpoint, by its name. The optimizer's tensors are not read."""
    import torch
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = FileSystemReader(str(weights))
    state = {
        name: torch.empty(tuple(stored.size), dtype=stored.properties.dtype)
        for name, stored in reader.read_metadata().state_dict_metadata.items()
        if name.startswith("module.") and isinstance(stored, TensorStorageMetadata)
    }
    load(state, storage_reader=reader, no_dist=True)
    return state


def _model(spec: Spec, state: dict[str, Any], dtype: str) -> Any:
    """transformers' model with the weights of ``state``, a checkpoint's tensors."""
    import torch
    from transformers import LlamaForCausalLM

    weights = {
        name: tensor.to(getattr(torch, dtype)).contiguous()
        for name, tensor in to_hugging_face(state, spec.model).items()
    }
    if spec.model.share_embeddings_and_output_weights:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    with torch.device("meta"):
        model = LlamaForCausalLM(_config(spec, dtype))
    model.load_state_dict(weights, strict=True, assign=True)
    return model


def to_hugging_face(state: dict[str, Any], model: Model) -> dict[str, Any]:
    """The tensors of a dense Llama under transformers' names.

    Args:
        state: Megatron-Core's tensors by their names in the checkpoint; those of layers are (num_layers, ...).
    """
    heads_per_group = model.num_attention_heads // model.num_query_groups
    head_channels = model.kv_channels
    out = {
        "model.embed_tokens.weight": state["module.embedding.word_embeddings.weight"][: model.vocab_size],
        "model.norm.weight": state["module.decoder.final_layernorm.weight"],
    }
    if not model.share_embeddings_and_output_weights:
        out["lm_head.weight"] = state["module.output_layer.weight"][: model.vocab_size]
    qkv = state[_LAYER + "self_attention.linear_qkv.weight"].view(
        model.num_layers, model.num_query_groups, heads_per_group + 2, head_channels, model.hidden_size
    )
    for i in range(model.num_layers):
        layer = f"model.layers.{i}."
        q, k, v = qkv[i].split((heads_per_group, 1, 1), dim=1)
        gate, up = state[_LAYER + "mlp.linear_fc1.weight"][i].chunk(2)
        out |= {
            layer + "self_attn.q_proj.weight": q.reshape(-1, model.hidden_size),
            layer + "self_attn.k_proj.weight": k.reshape(-1, model.hidden_size),
            layer + "self_attn.v_proj.weight": v.reshape(-1, model.hidden_size),
            layer + "self_attn.o_proj.weight": state[_LAYER + "self_attention.linear_proj.weight"][i],
            layer + "mlp.gate_proj.weight": gate,
            layer + "mlp.up_proj.weight": up,
            layer + "mlp.down_proj.weight": state[_LAYER + "mlp.linear_fc2.weight"][i],
            layer + "input_layernorm.weight": state[_LAYER + "self_attention.linear_qkv.layer_norm_weight"][i],
            layer + "post_attention_layernorm.weight": state[_LAYER + "mlp.linear_fc1.layer_norm_weight"][i],
        }
    return out


def _config(spec: Spec, dtype: str) -> Any:
    """transformers' configuration of the run's model; RoPE scaling is a class default of NeMo's configuration."""
    from transformers import LlamaConfig

    from slipway.recipes.build import nemo_config_class

    model = spec.model
    facts: Any = nemo_config_class(spec)
    scaling = None
    if getattr(facts, "scale_factor", None) and facts.scale_factor != 1:
        scaling = {
            "rope_type": "llama3",
            "factor": float(facts.scale_factor),
            "low_freq_factor": float(facts.low_freq_factor),
            "high_freq_factor": float(facts.high_freq_factor),
            "original_max_position_embeddings": int(facts.old_context_len),
        }
    return LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_query_groups,
        head_dim=model.kv_channels,
        max_position_embeddings=model.max_position_embeddings or model.seq_length,
        rms_norm_eps=model.layernorm_epsilon,
        rope_theta=model.rotary_base,
        rope_scaling=scaling,
        tie_word_embeddings=model.share_embeddings_and_output_weights,
        torch_dtype=dtype,
    )
