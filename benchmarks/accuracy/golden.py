"""Megatron-LM's golden memory values as specs: what its functional tests' command lines say, read into our schema.

They come from TensorBoard, which Megatron-LM writes on its last rank: they are those of the last pipeline stage.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slipway import configs
from slipway.configs import Calibration, Data, Fsdp, Layout, Model, Optimizer, Recompute, Spec
from slipway.configs.schema import Activation, Normalization, PositionEmbedding
from slipway.planner.published.inferred import fit_pipeline

GPUS = 8  # one node unless the case says otherwise
VOCABULARY = {"GPT2BPETokenizer": 50257, "GPTSentencePieceTokenizer": 256000, "Llama2Tokenizer": 32000}


@dataclass(frozen=True)
class Golden:
    """One golden value: bytes by torch's counters on the last rank."""

    case: str
    file: str
    spec: Spec | None
    cal: Calibration
    peak_bytes: float
    static_bytes: float
    skipped: str


def _spec(args: Mapping[str, Any], gpu: str) -> tuple[Spec, Calibration]:
    def num(key: str, default: int) -> int:
        value = args.get(key, default)
        return int(value) if str(value) not in ("None", "True") else default

    heads, hidden = num("--num-attention-heads", 1), num("--hidden-size", 1)
    experts = num("--num-experts", 0)
    dropout = float(args.get("--hidden-dropout", 0.1)) > 0
    swiglu = "--swiglu" in args
    mla = "--multi-latent-attention" in args
    tp, pp, cp = (
        num("--tensor-model-parallel-size", 1),
        num("--pipeline-model-parallel-size", 1),
        num("--context-parallel-size", 1),
    )
    layers = num("--num-layers", 1)
    per_chunk = num("--num-layers-per-virtual-pipeline-stage", 0)
    if str(args.get("--pipeline-model-parallel-layout", "")).count("|") >= pp:
        raise ValueError("a pipeline layout drawn chunk by chunk")
    ffn = num("--ffn-hidden-size", 4 * hidden if not swiglu else int(4 * hidden * 2 / 3) // 64 * 64)
    position = str(args.get("--position-embedding-type", "learned_absolute"))
    tokenizer = str(args.get("--tokenizer-type", "GPT2BPETokenizer"))
    if tokenizer not in VOCABULARY:
        raise ValueError(f"vocabulary of {tokenizer} is not stated")
    frequency = str(args.get("--moe-layer-freq", "1"))
    dense_layers = int(frequency.split("*")[1].split("+")[0].strip("[]() ")) if "[0]*" in frequency else 0
    model = Model(
        name="golden",
        family="gpt3",
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_query_groups=num("--num-query-groups", heads) if "--group-query-attention" in args else heads,
        kv_channels=num("--kv-channels", hidden // heads),
        vocab_size=VOCABULARY[tokenizer],
        seq_length=num("--seq-length", 1024),
        max_position_embeddings=num("--max-position-embeddings", 1024),
        gated_linear_unit=swiglu,
        activation_func=Activation.silu if swiglu else Activation.gelu,
        normalization=Normalization(str(args.get("--normalization", "LayerNorm"))),
        add_bias_linear="--disable-bias-linear" not in args,
        add_qkv_bias="--disable-bias-linear" not in args,
        qk_layernorm="--qk-layernorm" in args,
        share_embeddings_and_output_weights="--untie-embeddings-and-output-weights" not in args,
        position_embedding_type=PositionEmbedding.rope if position == "rope" else PositionEmbedding.learned_absolute,
        make_vocab_size_divisible_by=num("--make-vocab-size-divisible-by", 128),
        num_moe_experts=experts,
        moe_router_topk=num("--moe-router-topk", 2) if experts else 0,
        moe_ffn_hidden_size=num("--moe-ffn-hidden-size", ffn) if experts else 0,
        moe_shared_expert_intermediate_size=num("--moe-shared-expert-intermediate-size", 0),
        num_dense_layers=dense_layers,
        q_lora_rank=num("--q-lora-rank", 0) if mla else 0,
        kv_lora_rank=num("--kv-lora-rank", 32) if mla else 0,
        qk_head_dim=num("--qk-head-dim", 128) if mla else 0,
        qk_pos_emb_head_dim=num("--qk-pos-emb-head-dim", 64) if mla else 0,
        v_head_dim=num("--v-head-dim", 128) if mla else 0,
        mtp_num_layers=num("--mtp-num-layers", 0),
    )
    recompute = str(args.get("--recompute-granularity", "none"))
    modules = str(args.get("--recompute-modules", "")).strip("[]").replace(",", " ").split()
    first, last = num("--decoder-first-pipeline-num-layers", 0), num("--decoder-last-pipeline-num-layers", 0)
    vpp = layers // pp // per_chunk if per_chunk else num("--num-virtual-stages-per-pipeline-rank", 1)
    bf16 = "--bf16" in args or "--fp16" in args
    layout = Layout(
        tp=tp,
        pp=pp,
        vpp=max(vpp, 1),
        cp=cp,
        ep=num("--expert-model-parallel-size", 1),
        etp=num("--expert-tensor-parallel-size", 0),
        sp="--sequence-parallel" in args and tp > 1,
        mbs=num("--micro-batch-size", 1),
        gbs=num("--global-batch-size", 32),
        seq_length=num("--seq-length", 1024),
        recompute=Recompute(recompute),
        recompute_modules=[
            m for m in modules if m in ("core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe")
        ],
        recompute_num_layers=num("--recompute-num-layers", 0),
        distributed_optimizer="--use-distributed-optimizer" in args,
        fsdp=Fsdp.megatron
        if str(args.get("--data-parallel-sharding-strategy", "")) == "optim_grads_params"
        else Fsdp.none,
        num_layers_in_first_pipeline_stage=first,
        num_layers_in_last_pipeline_stage=last,
        fused_cross_entropy="--cross-entropy-loss-fusion" in args,
        attention_backend="unfused"
        if str(args.get("--attention-backend", "")) == "unfused" or str(args.get("--transformer-impl", "")) == "local"
        else "auto",
    )
    precision = configs.precision("bf16" if bf16 else "fp32")
    if "--fp8-format" in args:
        precision = configs.precision(
            {"tensorwise": "fp8_current", "blockwise": "fp8_blockwise", "mxfp8": "mxfp8"}.get(
                str(args.get("--fp8-recipe", "delayed")), "fp8_delayed"
            )
        )
        precision = replace(precision, fp8_param_gather="--fp8-param-gather" in args)
    optim = Optimizer(
        name="adam",
        lr=1e-4,
        min_lr=1e-5,
        weight_decay=0.1,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_eps=1e-8,
        warmup_steps=1,
        precision_aware="--use-precision-aware-optimizer" in args,
    )
    spec = Spec(
        name="golden",
        gpus=GPUS,
        model=model,
        gpu=configs.gpu(gpu),
        precision=precision,
        layout=layout,
        optim=optim,
        data=Data(name="mock"),
        cluster=configs.Cluster(name="none", executor="local"),
    )
    if spec.gpus % (tp * pp * cp):
        raise ValueError("more than one node")
    native = layout.fused_cross_entropy and str(args.get("--cross-entropy-fusion-impl", "native")) == "native"
    # Megatron-LM's own fused loss: the bf16 logits, an fp32 copy, and its exponentials beside it
    cal = Calibration(name="golden", dropout=dropout, logits_bytes=10.0 if native else 0.0)
    return (spec if first or last else fit_pipeline(spec)), cal


def load(path: Path) -> list[Golden]:
    """Every golden value that is a GPT or a mixture of experts, with the reason where it cannot be modelled."""
    out: list[Golden] = []
    csv.field_size_limit(1 << 24)
    for row in csv.DictReader(path.open()):
        file = row["golden_file"]
        gpu = "gb200" if "gb200" in file else "h100" if "h100" in file else "a100"
        family = row["case"].split("/")[0]
        spec, cal, why = None, Calibration(name="golden"), ""
        if family not in ("gpt", "moe", "mixtral") or "grpo" in row["case"] or "inference" in row["case"]:
            why = f"{family} or inference case"
        elif "release" in row["case"]:
            why = "the number of GPUs is not stated"
        elif "distill" in row["case"] or "--defer-embedding-wgrad-compute" in row["args_json"]:
            why = "holds a teacher or the gradients of the logits beside the model"
        elif not row["mem_max_allocated_bytes"]:
            why = "no peak stated"
        else:
            try:
                spec, cal = _spec(json.loads(row["args_json"]), gpu)
            except (ValueError, KeyError, configs.Refusal) as error:
                why = str(error)
        out.append(
            Golden(
                row["case"],
                file,
                spec,
                cal,
                float(row["mem_max_allocated_bytes"] or 0),
                float(row["mem_allocated_bytes"] or 0),
                why,
            )
        )
    return out
