"""A run's newest checkpoint as Hugging Face weights. Reads the checkpoint's own tensors: no GPU, no model, no process group.

The distributed checkpoint holds each tensor whole, layers stacked in front, whatever layout wrote it. Rows of the fused
projections: query, key and value of one group after the other; all gates, then all ups.
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


def _read(weights: Path) -> dict[str, Any]:
    """Every model tensor of a checkpoint, by its name; the optimizer's are left where they are."""
    import torch
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = FileSystemReader(str(weights))
    state = {
        name: torch.empty(tuple(held.size), dtype=held.properties.dtype)
        for name, held in reader.read_metadata().state_dict_metadata.items()
        if name.startswith("module.") and isinstance(held, TensorStorageMetadata)
    }
    load(state, storage_reader=reader, no_dist=True)
    return state


def to_hugging_face(state: dict[str, Any], m: Model) -> dict[str, Any]:
    """Megatron-Core's tensors of a dense Llama under transformers' names.

    Args:
        state: tensor names as in the checkpoint; layers' tensors are (num_layers, ...).
    """
    heads_per_group = m.num_attention_heads // m.num_query_groups
    width = m.kv_channels
    out = {
        "model.embed_tokens.weight": state["module.embedding.word_embeddings.weight"][: m.vocab_size],
        "model.norm.weight": state["module.decoder.final_layernorm.weight"],
    }
    if not m.share_embeddings_and_output_weights:
        out["lm_head.weight"] = state["module.output_layer.weight"][: m.vocab_size]
    qkv = state[_LAYER + "self_attention.linear_qkv.weight"].view(
        m.num_layers, m.num_query_groups, heads_per_group + 2, width, m.hidden_size
    )
    for i in range(m.num_layers):
        here = f"model.layers.{i}."
        q, k, v = qkv[i].split((heads_per_group, 1, 1), dim=1)
        gate, up = state[_LAYER + "mlp.linear_fc1.weight"][i].chunk(2)
        out |= {
            here + "self_attn.q_proj.weight": q.reshape(-1, m.hidden_size),
            here + "self_attn.k_proj.weight": k.reshape(-1, m.hidden_size),
            here + "self_attn.v_proj.weight": v.reshape(-1, m.hidden_size),
            here + "self_attn.o_proj.weight": state[_LAYER + "self_attention.linear_proj.weight"][i],
            here + "mlp.gate_proj.weight": gate,
            here + "mlp.up_proj.weight": up,
            here + "mlp.down_proj.weight": state[_LAYER + "mlp.linear_fc2.weight"][i],
            here + "input_layernorm.weight": state[_LAYER + "self_attention.linear_qkv.layer_norm_weight"][i],
            here + "post_attention_layernorm.weight": state[_LAYER + "mlp.linear_fc1.layer_norm_weight"][i],
        }
    return out


def _config(spec: Spec, dtype: str) -> Any:
    from transformers import LlamaConfig

    from slipway.recipes.build import nemo_config_class

    m = spec.model
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
        vocab_size=m.vocab_size,
        hidden_size=m.hidden_size,
        intermediate_size=m.ffn_hidden_size,
        num_hidden_layers=m.num_layers,
        num_attention_heads=m.num_attention_heads,
        num_key_value_heads=m.num_query_groups,
        head_dim=m.kv_channels,
        max_position_embeddings=m.max_position_embeddings or m.seq_length,
        rms_norm_eps=m.layernorm_epsilon,
        rope_theta=m.rotary_base,
        rope_scaling=scaling,
        tie_word_embeddings=m.share_embeddings_and_output_weights,
        torch_dtype=dtype,
    )


def export(run_dir: str, out: str, dtype: str = "bfloat16") -> None:
    """Write the newest whole checkpoint of a run as a folder that transformers loads; beside, then renamed.

    Raises:
        Refusal: no run, no whole checkpoint, a family that cannot be written yet, or a folder that is already there.
    """
    run, target = Path(run_dir), Path(out)
    record = run / RECORD
    if not record.is_file():
        raise Refusal(f"{run} holds no run", "Give the folder that holds slipway/recipe.json.")
    if dtype not in DTYPES:
        raise Refusal(f"--dtype {dtype} is not legal", f"Use {' or '.join(DTYPES)}.")
    spec = spec_from_record(json.loads(record.read_text())["spec"])
    if spec.model.family not in FAMILIES or spec.layout.fsdp.value != "none":
        what = spec.model.family if spec.model.family not in FAMILIES else "Megatron-FSDP checkpoints"
        raise Refusal(
            f"{what} cannot be written as Hugging Face weights here: {', '.join(FAMILIES)} can",
            "Use NeMo's llm.export_ckpt.",
        )
    if target.exists():
        raise Refusal(f"{target} is already there", "Give another --out.")
    found = held(run / "checkpoints")
    if found.newest is None:
        raise Refusal(f"{run} holds no whole checkpoint", "Train it further, or restore one.")
    import torch
    from transformers import LlamaForCausalLM

    kind = getattr(torch, dtype)
    state = {
        name: tensor.to(kind).contiguous()
        for name, tensor in to_hugging_face(_read(found.newest / "weights"), spec.model).items()
    }
    with torch.device("meta"):
        model = LlamaForCausalLM(_config(spec, dtype))
    if spec.model.share_embeddings_and_output_weights:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    beside = target.with_name(target.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    if spec.data.tokenizer and Path(spec.data.tokenizer).is_dir():
        for file in Path(spec.data.tokenizer).glob("*token*"):
            shutil.copy(file, beside)
    beside.rename(target)
    print(f"{target}: {spec.model.name} after step {found.step}, {dtype}, from {found.newest}")
