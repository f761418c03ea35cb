"""The weights of another run that training starts from (``run.base``)."""

from __future__ import annotations

from pathlib import Path

from slipway.configs import Model, Refusal
from slipway.configs.files import parse_json
from slipway.configs.record import model_from_record, recorded
from slipway.recipes.runtime.checkpoint_files import base_checkpoint
from slipway.recipes.runtime.run_files import ADAPTER, BASE_RECORD, IMPORTED_FILES, RECORD

# Facts that shape the weights. Others, such as the sequence length and the rotary base, may differ from the base's.
SHAPES = (
    "num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels vocab_size "
    "share_embeddings_and_output_weights "
    "gated_linear_unit normalization add_bias_linear add_qkv_bias qk_layernorm num_moe_experts num_dense_layers "
    "moe_ffn_hidden_size moe_shared_expert_intermediate_size mtp_num_layers q_lora_rank kv_lora_rank qk_head_dim "
    "qk_pos_emb_head_dim v_head_dim"
).split()


def checked_base(base: Path, model: Model) -> Path:
    """The checkpoint that a run of ``model`` starts from.

    Raises:
        Refusal: there is none, or its run's record says that its weights have other shapes. A checkpoint without a
            record is compared when it is loaded.
    """
    checkpoint = base_checkpoint(base)
    if (checkpoint / "weights" / ADAPTER).is_file():
        raise Refusal(
            f"run.base={base} is an adapter, without the weights that it belongs to",
            "Merge it: slipway weights export RUN --out HF, then slipway weights import HF --out BASE.",
        )
    held = _model_of(checkpoint)
    if held is None:
        return checkpoint
    for name in SHAPES:
        theirs, ours = (getattr(getattr(of, name), "value", getattr(of, name)) for of in (held, model))
        if theirs != ours:
            raise Refusal(
                f"run.base={base} has weights of {held.name} with {name}={theirs}, and this model has {name}={ours}",
                "Use a base of the same model, or model.mtp_num_layers=0."
                if name == "mtp_num_layers" and not theirs
                else "Use a base of the same model.",
            )
    return checkpoint


def _model_of(checkpoint: Path) -> Model | None:
    """The model of a checkpoint, by the record of imported weights or of the run that wrote it; None without one.

    Raises:
        Refusal: there is a record, and it cannot be read.
    """
    imported, trained = checkpoint / BASE_RECORD, checkpoint.parents[1] / RECORD
    try:
        if imported.is_file():
            return model_of_base(checkpoint)
        if trained.is_file():
            return recorded(trained)[0].model
    except Refusal:
        path = imported if imported.is_file() else trained
        raise Refusal(f"{path} cannot be read", "Give the folder of the checkpoint as run.base.") from None
    return None


def model_of_base(base: Path) -> Model:
    """The model whose imported weights a folder holds.

    Raises:
        Refusal: its record cannot be read.
    """
    record = base / BASE_RECORD
    held = parse_json(record, "the record of imported weights").get("model")
    if not isinstance(held, dict):
        raise Refusal(f"{record} names no model", "Import the weights again.")
    return model_from_record(held)


def tokenizer_of_base(base: Path) -> str:
    """The folder or name of the tokenizer that a base was trained with.

    Raises:
        Refusal: there is no base, or it names none.
    """
    checkpoint = base_checkpoint(base).resolve()
    if (checkpoint / IMPORTED_FILES / "tokenizer.json").is_file():
        return str(checkpoint / IMPORTED_FILES)
    record = checkpoint.parents[1] / RECORD
    tokenizer = recorded(record)[0].data.tokenizer if record.is_file() else ""
    if not tokenizer:
        raise Refusal(f"run.base={base} has no tokenizer", "Give one with data.tokenizer=FOLDER.")
    return tokenizer
