"""Megatron-LM's golden memory values as specs: the command lines of its functional tests, read into our schema.

The values come from TensorBoard, which Megatron-LM writes on its last rank: they are those of the last pipeline stage.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slipway import configs
from slipway.configs import Calibration, Data, Fsdp, Layout, Model, Precision, Recompute, Spec
from slipway.configs.schema import Activation, AttentionBackend, Normalization, PositionEmbedding
from slipway.planner.published.inferred import fit_pipeline
from slipway.planner.published.rows import ANY_ADAM
from slipway.planner.rules import SELECTIVE_MODULES

GPUS = 8  # one node, unless the case states otherwise
VOCABULARY = {"GPT2BPETokenizer": 50257, "GPTSentencePieceTokenizer": 256000, "Llama2Tokenizer": 32000}
FAMILIES = ("gpt", "moe", "mixtral")  # of Megatron-LM's tests, those that the planner models
FP8_RECIPES = {"tensorwise": "fp8_current", "blockwise": "fp8_blockwise", "mxfp8": "mxfp8", "delayed": "fp8_delayed"}
# Megatron-LM's own fused loss keeps the bf16 logits, an fp32 copy and its exponentials: 2 + 4 + 4 bytes per logit.
NATIVE_FUSED_LOGITS_BYTES = 10.0
SWIGLU_FFN_MULTIPLE = 64  # megatron/training/arguments.py rounds int(4 h * 2 / 3) down to a multiple of this
CSV_FIELD_LIMIT = 1 << 24  # bytes; the column of arguments exceeds the csv module's default


@dataclass(frozen=True)
class Golden:
    """One golden value: bytes by torch's counters on the last rank."""

    case: str
    file: str
    spec: Spec | None
    constants: Calibration
    peak_bytes: float
    static_bytes: float  # between steps
    skipped: str


@dataclass(frozen=True)
class Arguments:
    """A command line of pretrain_gpt.py: option to value; the defaults are those of megatron/training/arguments.py."""

    given: Mapping[str, Any]

    def __contains__(self, option: str) -> bool:
        return option in self.given

    def number(self, option: str, default: int) -> int:
        value = self.given.get(option, default)
        return int(value) if str(value) not in ("None", "True") else default

    def text(self, option: str, default: str = "") -> str:
        return str(self.given.get(option, default))

    @property
    def layers(self) -> int:
        return self.number("--num-layers", 1)

    @property
    def tp(self) -> int:
        return self.number("--tensor-model-parallel-size", 1)

    @property
    def pp(self) -> int:
        return self.number("--pipeline-model-parallel-size", 1)

    @property
    def cp(self) -> int:
        return self.number("--context-parallel-size", 1)


def _model(args: Arguments) -> Model:
    """The architecture. Raises ValueError where the vocabulary is not known."""
    heads, hidden = args.number("--num-attention-heads", 1), args.number("--hidden-size", 1)
    swiglu, bias = "--swiglu" in args, "--disable-bias-linear" not in args
    default_ffn = int(4 * hidden * 2 / 3) // SWIGLU_FFN_MULTIPLE * SWIGLU_FFN_MULTIPLE if swiglu else 4 * hidden
    ffn = args.number("--ffn-hidden-size", default_ffn)
    tokenizer = args.text("--tokenizer-type", "GPT2BPETokenizer")
    if tokenizer not in VOCABULARY:
        raise ValueError(f"vocabulary of {tokenizer} is not stated")
    rotary = args.text("--position-embedding-type", "learned_absolute") == "rope"
    return Model(
        name="golden",
        family="gpt3",
        num_layers=args.layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_query_groups=args.number("--num-query-groups", heads) if "--group-query-attention" in args else heads,
        kv_channels=args.number("--kv-channels", hidden // heads),
        vocab_size=VOCABULARY[tokenizer],
        seq_length=args.number("--seq-length", 1024),
        max_position_embeddings=args.number("--max-position-embeddings", 1024),
        gated_linear_unit=swiglu,
        activation_func=Activation.silu if swiglu else Activation.gelu,
        normalization=Normalization(args.text("--normalization", "LayerNorm")),
        add_bias_linear=bias,
        add_qkv_bias=bias,
        qk_layernorm="--qk-layernorm" in args,
        share_embeddings_and_output_weights="--untie-embeddings-and-output-weights" not in args,
        position_embedding_type=PositionEmbedding.rope if rotary else PositionEmbedding.learned_absolute,
        make_vocab_size_divisible_by=args.number("--make-vocab-size-divisible-by", 128),
        mtp_num_layers=args.number("--mtp-num-layers", 0),
        **_experts(args, ffn),
        **_latent_attention(args),
    )


def _experts(args: Arguments, ffn: int) -> dict[str, Any]:
    """The fields of :class:`Model` for a mixture of experts."""
    experts = args.number("--num-experts", 0)
    frequency = args.text("--moe-layer-freq", "1")  # a number, or Python such as ([0]*1+[1]*15)
    return {
        "num_moe_experts": experts,
        "moe_router_topk": args.number("--moe-router-topk", 2) if experts else 0,
        "moe_ffn_hidden_size": args.number("--moe-ffn-hidden-size", ffn) if experts else 0,
        "moe_shared_expert_intermediate_size": args.number("--moe-shared-expert-intermediate-size", 0),
        "num_dense_layers": int(frequency.split("*")[1].split("+")[0].strip("[]() ")) if "[0]*" in frequency else 0,
    }


def _latent_attention(args: Arguments) -> dict[str, Any]:
    """The fields of :class:`Model` for multi-latent attention."""
    if "--multi-latent-attention" not in args:
        return {}
    return {
        "q_lora_rank": args.number("--q-lora-rank", 0),
        "kv_lora_rank": args.number("--kv-lora-rank", 32),
        "qk_head_dim": args.number("--qk-head-dim", 128),
        "qk_pos_emb_head_dim": args.number("--qk-pos-emb-head-dim", 64),
        "v_head_dim": args.number("--v-head-dim", 128),
    }


def _layout(args: Arguments) -> Layout:
    """The layout. Raises ValueError for a pipeline whose chunks are listed one by one."""
    if args.text("--pipeline-model-parallel-layout").count("|") >= args.pp:
        raise ValueError("a pipeline layout that lists every chunk")
    per_chunk = args.number("--num-layers-per-virtual-pipeline-stage", 0)
    chunks = args.number("--num-virtual-stages-per-pipeline-rank", 1)
    modules = args.text("--recompute-modules").strip("[]").replace(",", " ").split()
    sharding = args.text("--data-parallel-sharding-strategy")
    unfused = args.text("--attention-backend") == "unfused" or args.text("--transformer-impl") == "local"
    return Layout(
        tp=args.tp,
        pp=args.pp,
        vpp=max(args.layers // args.pp // per_chunk if per_chunk else chunks, 1),
        cp=args.cp,
        ep=args.number("--expert-model-parallel-size", 1),
        etp=args.number("--expert-tensor-parallel-size", 0),
        sp="--sequence-parallel" in args and args.tp > 1,
        mbs=args.number("--micro-batch-size", 1),
        gbs=args.number("--global-batch-size", 32),
        seq_length=args.number("--seq-length", 1024),
        recompute=Recompute(args.text("--recompute-granularity", "none")),
        recompute_modules=[name for name in modules if name in SELECTIVE_MODULES],
        recompute_num_layers=args.number("--recompute-num-layers", 0),
        distributed_optimizer="--use-distributed-optimizer" in args,
        fsdp=Fsdp.megatron if sharding == "optim_grads_params" else Fsdp.none,
        num_layers_in_first_pipeline_stage=args.number("--decoder-first-pipeline-num-layers", 0),
        num_layers_in_last_pipeline_stage=args.number("--decoder-last-pipeline-num-layers", 0),
        fused_cross_entropy="--cross-entropy-loss-fusion" in args,
        attention_backend=AttentionBackend.unfused if unfused else AttentionBackend.auto,
    )


def _precision(args: Arguments) -> Precision:
    if "--fp8-format" in args:
        recipe = FP8_RECIPES.get(args.text("--fp8-recipe", "delayed"), "fp8_delayed")
        return replace(configs.precision(recipe), fp8_param_gather="--fp8-param-gather" in args)
    return configs.precision("bf16" if "--bf16" in args or "--fp16" in args else "fp32")


def _constants(args: Arguments) -> Calibration:
    """What of these runs a layout does not hold: dropout, and the bytes per logit at the loss."""
    native = "--cross-entropy-loss-fusion" in args and args.text("--cross-entropy-fusion-impl", "native") == "native"
    return Calibration(
        name="golden",
        dropout=float(args.given.get("--hidden-dropout", 0.1)) > 0,
        logits_bytes=NATIVE_FUSED_LOGITS_BYTES if native else 0.0,
    )


def _spec(args: Arguments, gpu: str) -> Spec:
    """A command line as a spec. Raises ValueError where the planner cannot model it."""
    layout = _layout(args)
    spec = Spec(
        name="golden",
        gpus=GPUS,
        model=_model(args),
        gpu=configs.gpu(gpu),
        precision=_precision(args),
        layout=layout,
        optim=replace(ANY_ADAM, precision_aware="--use-precision-aware-optimizer" in args),
        data=Data(name="mock"),
        cluster=configs.Cluster(name="none", executor="local"),
    )
    if spec.gpus % (layout.tp * layout.pp * layout.cp):
        raise ValueError("more than one node")
    split_is_given = layout.num_layers_in_first_pipeline_stage or layout.num_layers_in_last_pipeline_stage
    return spec if split_is_given else fit_pipeline(spec)


def _unmodelled(row: Mapping[str, str]) -> str:
    """Why a case cannot be modelled, whatever its arguments; empty if it may be."""
    family = row["case"].split("/")[0]
    if family not in FAMILIES or "grpo" in row["case"] or "inference" in row["case"]:
        return f"{family} or inference case"
    if "release" in row["case"]:
        return "the number of GPUs is not stated"
    if "distill" in row["case"] or "--defer-embedding-wgrad-compute" in row["args_json"]:
        return "a teacher or the gradients of the logits are in memory too"
    return "" if row["mem_max_allocated_bytes"] else "no peak stated"


def _golden(row: Mapping[str, str]) -> Golden:
    file = row["golden_file"]
    gpu = next((name for name in ("gb200", "h100") if name in file), "a100")
    spec, constants, skipped = None, Calibration(name="golden"), _unmodelled(row)
    if not skipped:
        try:
            args = Arguments(json.loads(row["args_json"]))
            spec, constants = _spec(args, gpu), _constants(args)
        except (ValueError, KeyError, configs.Refusal) as error:
            skipped = str(error)
    peak, static = (float(row[column] or 0) for column in ("mem_max_allocated_bytes", "mem_allocated_bytes"))
    return Golden(row["case"], file, spec, constants, peak, static, skipped)


def load(path: Path) -> list[Golden]:
    """Every golden value of a CSV, with its spec or the reason why it cannot be modelled."""
    csv.field_size_limit(CSV_FIELD_LIMIT)
    with path.open(newline="", encoding="utf-8") as file:
        return [_golden(row) for row in csv.DictReader(file)]
