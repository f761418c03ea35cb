"""A training configuration of NeMo 1.0, as NeMo-Framework-Launcher keeps them: plain YAML, of which nothing runs."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from slipway import configs
from slipway.configs import Dispatcher, Fsdp, Layout, Levers, Model, Precision, Recompute, Refusal, Run, Spec
from slipway.configs.files import ROOT
from slipway.configs.load import override
from slipway.configs.schema.layout import RecomputeMethod
from slipway.configs.schema.model import Activation, Normalization, PositionEmbedding
from slipway.launch.foreign.kinds.nemo_recipe import NOT_OF_NEMO
from slipway.launch.foreign.megatron.arguments import bearing
from slipway.launch.foreign.megatron.run import any_adam
from slipway.launch.foreign.reading import (
    USUAL_GPU,
    File,
    Reading,
    Request,
    gpu_in,
    require_layers,
    require_whole,
    run_name,
    yaml_of,
)
from slipway.launch.foreign.terms import PathTerms
from slipway.launch.foreign.values import Values
from slipway.planner.rules.registry import Framework

NAME = "NeMo 1.0 training configuration"
VERSION = "NeMo-Framework-Launcher 24.12, with the rules of megatron-core 0.15.3"
_SIGNS = tuple(re.compile(rf"^{word}\s*:", re.MULTILINE) for word in ("trainer", "model"))
_SIZE = re.compile(r"^\s+(tensor_model_parallel_size|encoder_seq_length|micro_batch_size)\s*:", re.MULTILINE)
_OTHERS = {
    "model.encoder": "an encoder and a decoder (T5)",
    "model.bert_binary_head": "an encoder (BERT)",
    "model.mm_cfg": "a vision encoder",
    "model.vision": "a vision encoder",
    "model.unet_config": "a diffusion model",
    "model.unet": "a diffusion model",
    "model.retro": "a retriever (Retro)",
    "model.patch_dim": "images as its input",
    "model.enc_num_layers": "an encoder and a decoder (Retro)",
}
"""Paths of configurations whose models are not decoders, and what these have."""
_ACTIVATIONS = {"swiglu": Activation.silu, "squared": Activation.squared_relu}  # by a word in the name
PATHS = {
    "layout.tp": "model.tensor_model_parallel_size",
    "layout.pp": "model.pipeline_model_parallel_size",
    "layout.vpp": "model.virtual_pipeline_model_parallel_size",
    "layout.cp": "model.context_parallel_size",
    "layout.ep": "model.expert_model_parallel_size",
    "layout.sp": "model.sequence_parallel",
    "layout.mbs": "model.micro_batch_size",
    "layout.gbs": "model.global_batch_size",
    "layout.seq_length": "model.encoder_seq_length",
    "layout.recompute": "model.activations_checkpoint_granularity",
    "layout.recompute_method": "model.activations_checkpoint_method",
    "layout.recompute_num_layers": "model.activations_checkpoint_num_layers",
    "layout.fsdp": "model.fsdp",
    "layout.overlap_grad_reduce": "model.optim.overlap_grad_sync",
    "layout.overlap_param_gather": "model.optim.overlap_param_sync",
    "layout.tp_comm_overlap": "model.ub_tp_comm_overlap",
    "layout.dispatcher": "model.moe_token_dispatcher_type",
    "layout.fused_cross_entropy": "model.cross_entropy_loss_fusion",
    "model.num_layers": "model.num_layers",
    "gpus": "trainer.num_nodes x trainer.devices",
}


def recognizes(file: File) -> bool:
    """Whether the file is YAML with a trainer and a model of NeMo 1.0."""
    if file.path.suffix not in (".yaml", ".yml"):
        return False
    return all(sign.search(file.text) for sign in _SIGNS) and bool(_SIZE.search(file.text))


def read(file: File, request: Request) -> Reading:
    """The run that the configuration describes."""
    require_whole(file)
    tree = yaml_of(file)
    if not isinstance(tree, dict):
        raise Refusal(f"{file.path} does not hold a mapping of keys to values", "Give a training configuration.")
    values = Values(tree, file.name, roots=("training",))
    for path, what in _OTHERS.items():
        if path in values:
            raise Refusal(f"{file.name} has a model with {what}, which cannot be planned", "Give a decoder-only model.")
    assumed: list[str] = []
    spec = _spec(values, file, request, assumed)
    if ramp := values.get("model.rampup_batch_size"):
        assumed.append(f"the whole batch from the first step, without model.rampup_batch_size={ramp}")
    rates = [values.number(f"model.{name}_dropout", 0.0) for name in ("hidden", "attention")]
    found = values.account(ROOT / "nemo" / "framework.yaml")
    return Reading(
        kind=NAME,
        version=VERSION,
        path=file.path,
        resolved=override(spec, request.overrides),
        assumed=assumed,
        dropout=any(rates),
        lifted=NOT_OF_NEMO,
        framework=Framework.nemo,
        terms=PathTerms(PATHS),
        used=found.used,
        irrelevant=found.irrelevant,
        unknown=found.unknown,
        not_modelled=found.not_modelled,
    )


def _spec(values: Values, file: File, request: Request, assumed: list[str]) -> Spec:
    given = {each.partition("=")[0] for each in request.overrides}
    name = f"{run_name(file)} {values.text('run.name')}"
    named = gpu_in(name)
    if not given & {"gpu", "cluster"}:
        why = "as its name has it" if named else "the file does not say; gpu= gives another"
        assumed.append(f"{(named or USUAL_GPU).upper()}: {why}")
    devices, nodes = values.whole("trainer.devices", 1), values.whole("trainer.num_nodes", 1)
    if values.whole("trainer.accumulate_grad_batches", 1) != 1:
        raise Refusal(f"{file.name} has trainer.accumulate_grad_batches, which Megatron replaces", "Leave it at 1.")
    model = _model(values, run_name(file), assumed)
    optimizer = values.text("model.optim.name", "fused_adam")
    sharded = optimizer in ("mcore_distributed_optim", "distributed_fused_adam")
    return Spec(
        name=run_name(file),
        gpus=devices * nodes,
        model=model,
        gpu=configs.gpu(named or USUAL_GPU),
        precision=_precision(values, assumed),
        layout=_layout(values, model, sharded),
        levers=Levers(sharp=values.flag("model.sharp"), wgrad_deferral_limit=_deferred(values)),
        optim=any_adam(),
        data=configs.Data(name="mock"),
        cluster=configs.Cluster(name="file", executor="local", gpus_per_node=devices if nodes > 1 else 0),
        run=Run(max_steps=max(values.whole("trainer.max_steps", 1), 1)),
    )


def _deferred(values: Values) -> int:
    return values.whole("model.wgrad_deferral_limit", 0) if values.flag("model.defer_embedding_wgrad_compute") else 0


def _model(values: Values, name: str, assumed: list[str]) -> Model:
    layers, hidden = values.whole("model.num_layers"), values.whole("model.hidden_size")
    heads, activation = values.whole("model.num_attention_heads"), values.text("model.activation", "gelu")
    require_layers(layers, values.where)
    if layers < 1 or hidden < 1 or heads < 1:
        raise Refusal(f"{values.where} has a model without layers, width or heads", "Correct it.")
    ffn = values.whole("model.ffn_hidden_size", 4 * hidden)
    bias, length = values.flag("model.bias", True), values.whole("model.encoder_seq_length")
    positions = values.text("model.position_embedding_type", "learned_absolute").lower()
    if positions not in ("rope", "learned_absolute", "none"):
        assumed.append(f"no positions for {positions}, which cost nothing to speak of")
        positions = "none"
    window, norm = values.get("model.window_size"), values.text("model.normalization", "layernorm").lower()
    return Model(
        name=name,
        family="nemo",
        source=values.where,
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_query_groups=values.whole("model.num_query_groups", heads),
        kv_channels=values.whole("model.kv_channels", max(hidden // heads, 1)),
        vocab_size=_vocabulary(values, assumed),
        seq_length=length,
        max_position_embeddings=values.whole("model.max_position_embeddings", length),
        gated_linear_unit="glu" in activation,
        activation_func=next((made for word, made in _ACTIVATIONS.items() if word in activation), Activation.gelu),
        normalization=Normalization.RMSNorm if norm == "rmsnorm" else Normalization.LayerNorm,
        add_bias_linear=bias,
        add_qkv_bias=bias or values.flag("model.qkv_bias"),
        qk_layernorm=values.flag("model.qk_layernorm"),
        share_embeddings_and_output_weights=values.flag("model.share_embeddings_and_output_weights", True),
        position_embedding_type=PositionEmbedding(positions),
        make_vocab_size_divisible_by=values.whole("model.make_vocab_size_divisible_by", 128),
        window_size=int(window[0]) if isinstance(window, list) and window else 0,
        **_experts(values, ffn),
    )


def _experts(values: Values, ffn: int) -> dict[str, Any]:
    if not (experts := values.whole("model.num_moe_experts", 0)):
        return {}
    return {
        "num_moe_experts": experts,
        "moe_router_topk": values.whole("model.moe_router_topk", 2),
        "moe_ffn_hidden_size": values.whole("model.moe_ffn_hidden_size", ffn),
        "moe_shared_expert_intermediate_size": values.whole("model.moe_shared_expert_intermediate_size", 0),
    }


def _vocabulary(values: Values, assumed: list[str]) -> int:
    if given := values.whole("model.override_vocab_size", 0):
        return given
    known, words = bearing(), [values.text(f"model.tokenizer.{key}") for key in ("type", "model", "library")]
    text = " ".join(words).lower()
    kind = next((word for word in words if word in known.vocabularies), "")
    if not kind and any(name in text for name in ("llama", "mistral", "baichuan")):
        kind = "Llama2Tokenizer"
    kind = kind or ("SentencePieceTokenizer" if "sentencepiece" in text else "GPT2BPETokenizer")
    size = next((size for word, size in known.models.items() if word in text), known.vocabularies[kind])
    assumed.append(
        f"a vocabulary of {size:,} ({text.strip() or 'no tokenizer is named'}); model.vocab_size= corrects it"
    )
    return size


def _precision(values: Values, assumed: list[str]) -> Precision:
    word = values.text("trainer.precision", "bf16")
    if values.flag("model.fp8"):
        made = replace(configs.precision("fp8_delayed"), fp8_param_gather=values.flag("model.fp8_params"))
    else:
        made = configs.precision("fp32" if word.startswith("32") else "bf16")
    if word.startswith("16"):
        assumed.append("fp16 is planned as bf16")
    return replace(made, grad_reduce_in_fp32=values.text("model.optim.grad_sync_dtype", "fp32") == "fp32")


def _layout(values: Values, model: Model, sharded: bool) -> Layout:
    granularity = values.text("model.activations_checkpoint_granularity", "none")
    if granularity not in ("none", "selective", "full"):
        raise Refusal(
            f"{values.where}: model.activations_checkpoint_granularity={granularity}", "Use selective or full."
        )
    full = granularity == "full"
    method = values.text("model.activations_checkpoint_method")
    layers = values.whole("model.activations_checkpoint_num_layers", 0)
    dispatcher = Dispatcher(values.text("model.moe_token_dispatcher_type", "allgather"))
    return Layout(
        tp=values.whole("model.tensor_model_parallel_size", 1),
        pp=values.whole("model.pipeline_model_parallel_size", 1),
        vpp=values.whole("model.virtual_pipeline_model_parallel_size", 1),
        cp=values.whole("model.context_parallel_size", 1),
        ep=values.whole("model.expert_model_parallel_size", 1),
        sp=None if values.flag("model.sequence_parallel") else False,  # NeMo drops it without tensor parallelism
        mbs=values.whole("model.micro_batch_size"),
        gbs=values.whole("model.global_batch_size"),
        fsdp=Fsdp.megatron if values.flag("model.fsdp") else Fsdp.none,
        distributed_optimizer=sharded,
        overlap_grad_reduce=values.flag("model.optim.overlap_grad_sync"),
        overlap_param_gather=values.flag("model.optim.overlap_param_sync"),
        tp_comm_overlap=values.flag("model.ub_tp_comm_overlap"),
        dispatcher=dispatcher if model.is_moe else Dispatcher.alltoall,
        moe_expert_capacity_factor=values.number("model.moe_expert_capacity_factor", 0.0),
        moe_pad_expert_input_to_capacity=values.flag("model.moe_pad_expert_input_to_capacity"),
        recompute=Recompute(granularity),
        recompute_method=RecomputeMethod(method if full and method in ("uniform", "block") else ""),
        recompute_num_layers=layers if full else 0,
        cuda_graphs=values.flag("model.enable_cuda_graph"),
        fused_cross_entropy=values.flag("model.cross_entropy_loss_fusion"),
    )
