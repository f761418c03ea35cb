"""The run that a configuration of Megatron-Bridge describes."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

from slipway import configs
from slipway.configs import (
    Adapter,
    Call,
    Dispatcher,
    Fsdp,
    Layout,
    Levers,
    Model,
    Optimizer,
    Precision,
    Recompute,
    Refusal,
    Run,
    Spec,
    Task,
)
from slipway.configs.convert import convert
from slipway.configs.record import plain_of
from slipway.configs.schema.layout import AttentionBackend, RecomputeMethod
from slipway.configs.schema.model import Activation
from slipway.configs.schema.optimizer import LrSchedule, Moments
from slipway.configs.schema.pipeline_layout import chunks_of_text
from slipway.launch.foreign.bridge.keys import EXPERTS, LATENT, LAYOUT, MIXED, MODEL, OPTIMIZER, RECIPES, STYLES
from slipway.launch.foreign.bridge.source import HF
from slipway.launch.foreign.megatron.model import MAMBA_EXPANSION, placement_of_experts
from slipway.launch.foreign.megatron.optimizer import READ
from slipway.launch.foreign.megatron.run import any_adam
from slipway.launch.foreign.reading import Request, require_layers
from slipway.launch.foreign.values import Values
from slipway.planner.published.names import known_model

USUAL_GPUS_PER_NODE = 8


def spec_of(values: Values, name: str, gpu: str, request: Request, assumed: list[str]) -> Spec:
    """The run.

    Args:
        assumed: gains what the configuration leaves open.

    Raises:
        Refusal: it is incomplete or cannot be planned.
    """
    model = _model(values, name, assumed)
    layout = _layout(values, model)
    run = Run(max_steps=max(values.whole("train.train_iters", 1), 1))
    given = {each.partition("=")[0] for each in request.overrides}
    gpus = fewest_gpus(layout)
    if not given & {"gpus", "nodes"}:
        assumed.append(f"{gpus} GPUs, the whole nodes that its parallel sizes fill; gpus= gives another number")
    spec = Spec(
        name=name,
        gpus=gpus,
        model=model,
        gpu=configs.gpu(gpu),
        precision=_precision(values, assumed),
        layout=layout,
        levers=_levers(values),
        optim=_optimizer(values, run.max_steps),
        data=configs.Data(name="mock"),
        cluster=configs.Cluster(name="file", executor="local"),
        run=run,
        task=_task(values),
    )
    return convert(Spec, plain_of(spec), "")


def _task(values: Values) -> Task:
    """What is trained: an adapter where there is one."""
    if "peft" not in values or (values.leaves.get("peft", "") is None):
        return Task()
    for path in values.leaves:
        if path in ("peft", "peft._target_"):
            values.get(path)
    return Task(name="lora", call=Call.finetune, adapter=Adapter.lora, lora_rank=values.whole("peft.dim", 32))


def fewest_gpus(layout: Layout) -> int:
    """The fewest nodes of 8 GPUs that hold whole copies of the model and its experts."""
    ranks = math.lcm(layout.tp * layout.pp * layout.cp, layout.expert_tp * layout.ep * layout.pp)
    nodes = math.lcm(ranks, USUAL_GPUS_PER_NODE)
    unit = layout.mbs * (nodes // (layout.tp * layout.pp * layout.cp))
    return ranks if layout.gbs % unit else nodes


def _model(values: Values, name: str, assumed: list[str]) -> Model:
    facts: dict[str, Any] = {}
    if hub := values.text(f"model.{HF}"):
        known = hub_model(hub)
        if known is None and "model.num_layers" not in values:
            raise Refusal(
                f"{values.where} takes {hub} from the model hub, and configs/model has no such model",
                "Give its run_config.yaml, or its config.json to slipway check.",
            )
        facts = plain_of(known) if known else {}
        if known:
            assumed.append(f"{hub} is {known.name} of configs/model")
    for field, path in (MODEL | EXPERTS | LATENT).items():
        found = values.get(path)
        if found is not None:
            facts[field] = found
    values.get("model.multi_latent_attention")
    facts |= {"name": name, "family": "megatron-bridge", "nemo_config": "", "source": values.where}
    layers, hidden = (facts.get(key) for key in ("num_layers", "hidden_size"))
    heads = facts.get("num_attention_heads")
    if not all(isinstance(size, int) and size > 0 for size in (layers, hidden, heads)):
        raise Refusal(f"{values.where} does not say model.num_layers, hidden_size and num_attention_heads", "Add them.")
    assert layers and hidden and heads
    require_layers(layers, values.where)
    length = values.whole("model.seq_length", values.whole("dataset.seq_length", 0) or facts.get("seq_length") or 1024)
    values.get("dataset.seq_length")
    facts.setdefault("ffn_hidden_size", 4 * hidden)
    facts.setdefault("num_query_groups", heads)
    facts.setdefault("kv_channels", max(hidden // heads, 1))
    facts["seq_length"] = length
    facts["max_position_embeddings"] = max(length, facts.get("max_position_embeddings") or 0)
    if not hub:
        facts.setdefault("gated_linear_unit", False)
        facts.setdefault("normalization", "LayerNorm")
        facts.setdefault("add_bias_linear", True)
        facts.setdefault("share_embeddings_and_output_weights", True)
        facts.setdefault("position_embedding_type", "learned_absolute")
    positions = facts["position_embedding_type"]
    facts["position_embedding_type"] = "rope" if positions in ("yarn", "mrope") else positions
    facts["add_qkv_bias"] = bool(facts.get("add_qkv_bias")) or bool(facts.get("add_bias_linear"))
    facts["rotary_base"] = float(facts.get("rotary_base") or 10000)
    facts["vocab_size"] = facts.get("vocab_size") or values.whole("tokenizer.vocab_size", 0)
    if not facts["vocab_size"]:
        raise Refusal(f"{values.where} does not say model.vocab_size", "Add it, or give model.vocab_size=128256.")
    if "model.should_pad_vocab" in values or not hub:
        facts["pad_vocab"] = values.flag("model.should_pad_vocab")
    facts |= (
        _activation(values) | _placement(values, facts, assumed) | _windows(values) | _hybrid(values, layers, hidden)
    )
    return convert(Model, {key: value for key, value in facts.items() if value is not None}, f"{values.where}: model.")


def hub_model(hub: str) -> Model | None:
    """The model of configs/model that a name on the model hub means, whatever was done with it after pretraining."""
    name = re.sub(
        r"^(meta|nvidia)-|-(hf|base|instruct|chat|it|v0\.1|bf16|reasoning)$", "", hub.rpartition("/")[2].lower()
    )
    known = known_model(re.sub(r"-(instruct|base)(-\d+)?$", "", name))
    return configs.model(known) if known else None


def _activation(values: Values) -> dict[str, Any]:
    text = values.text("model.activation_func._target_") or values.text("model.activation_func")
    values.get("model.activation_func._call_")
    if not text:
        return {} if f"model.{HF}" in values else {"activation_func": Activation.gelu.value}
    kinds = {"silu": Activation.silu, "squared_relu": Activation.squared_relu}
    return {"activation_func": next((kind.value for word, kind in kinds.items() if word in text), "gelu")}


def _placement(values: Values, facts: dict[str, Any], assumed: list[str]) -> dict[str, Any]:
    if not facts.get("num_moe_experts"):
        return {}
    facts.setdefault("moe_router_topk", 2)
    facts["moe_ffn_hidden_size"] = facts.get("moe_ffn_hidden_size") or facts["ffn_hidden_size"]
    frequency = values.get("model.moe_layer_freq")
    if isinstance(frequency, int):
        frequency = [int(i % frequency == 0) for i in range(facts["num_layers"])]
    if not isinstance(frequency, list):
        return {}
    said = "model.moe_layer_freq"
    dense, every = placement_of_experts(frequency, facts["num_layers"], said, values.where, assumed)
    return {"num_dense_layers": dense, "moe_every": every}


def _windows(values: Values) -> dict[str, Any]:
    window, every = values.get("model.window_size"), values.get("model.window_attn_skip_freq", 1)
    if isinstance(window, list):
        window = window[0] if window else 0
    if not isinstance(window, int) or window < 1:
        return {}
    return {"window_size": window, "window_every": every if isinstance(every, int) else 1}


def _hybrid(values: Values, layers: int, hidden: int) -> dict[str, Any]:
    pattern = values.text("model.hybrid_override_pattern")
    if not pattern:
        return {}
    head = values.whole("model.mamba_head_dim", 64)
    return {
        "hybrid_override_pattern": pattern,
        "mamba_num_heads": values.whole("model.mamba_num_heads", MAMBA_EXPANSION * hidden // head),
        "mamba_head_dim": head,
        "mamba_state_dim": values.whole("model.mamba_state_dim", 128),
        "mamba_num_groups": values.whole("model.mamba_num_groups", 8),
    }


def _precision(values: Values, assumed: list[str]) -> Precision:
    values.get("ddp.grad_reduce_in_fp32")
    word = values.text("mixed_precision")
    if word:
        if word not in MIXED:
            raise Refusal(f"{values.where}: mixed_precision={word} is not known", f"Known: {', '.join(MIXED)}.")
        if word.startswith("fp16"):
            assumed.append("fp16 is planned as bf16")
        return configs.precision(MIXED[word])
    head = "mixed_precision" if "mixed_precision" in values else "model"
    if values.text(f"{head}.fp4"):
        made = configs.precision("nvfp4")
    elif values.text(f"{head}.fp8"):
        recipe = values.text(f"{head}.fp8_recipe", "delayed")
        if recipe not in RECIPES:
            raise Refusal(f"{values.where}: {head}.fp8_recipe={recipe} is not known", f"Known: {', '.join(RECIPES)}.")
        made = replace(
            configs.precision(RECIPES[recipe]),
            fp8_param_gather=values.flag(f"{head}.fp8_param_gather"),
            first_last_layers_bf16=values.flag(f"{head}.first_last_layers_bf16"),
            num_layers_at_start_in_bf16=values.whole(f"{head}.num_layers_at_start_in_bf16", 0),
            num_layers_at_end_in_bf16=values.whole(f"{head}.num_layers_at_end_in_bf16", 0),
        )
    else:
        made = configs.precision("fp32" if values.flag(f"{head}.fp32") else "bf16")
        values.get(f"{head}.fp8_recipe")
    place = "mixed_precision.grad_reduce_in_fp32" if head == "mixed_precision" else "ddp.grad_reduce_in_fp32"
    return replace(made, grad_reduce_in_fp32=values.flag(place, True))


def _layout(values: Values, model: Model) -> Layout:
    """The layout. Long because it names every field once."""
    granularity = values.text(LAYOUT["recompute"], "none")
    if granularity not in ("none", "selective", "full"):
        raise Refusal(f"{values.where}: {LAYOUT['recompute']}={granularity}", "Use selective or full.")
    pp, text = values.whole(LAYOUT["pp"], 1), values.get(LAYOUT["pipeline_layout"]) or ""
    text = text if isinstance(text, str) else ""
    vpp = _chunks(values, text, pp) if text else values.whole(LAYOUT["vpp"], 1)
    fsdp = values.flag(LAYOUT["fsdp"]) and values.text("ddp.data_parallel_sharding_strategy") == "optim_grads_params"
    values.get("ddp.data_parallel_sharding_strategy")
    modules = values.get(LAYOUT["recompute_modules"], [])
    backend = values.text(LAYOUT["attention_backend"], "auto").rpartition(".")[2]
    overlap = any(path.startswith("comm_overlap.") for path in values.leaves)
    values.get("comm_overlap")
    sharded = values.flag(LAYOUT["sp"])
    return Layout(
        tp=values.whole(LAYOUT["tp"], 1),
        pp=pp,
        vpp=vpp,
        cp=values.whole(LAYOUT["cp"], 1),
        ep=values.whole(LAYOUT["ep"], 1),
        etp=values.whole(LAYOUT["etp"], 0),
        sp=sharded if values.whole(LAYOUT["tp"], 1) > 1 else None,
        mbs=values.whole(LAYOUT["mbs"], 1),
        gbs=values.whole(LAYOUT["gbs"], 512),
        fsdp=Fsdp.megatron if fsdp else Fsdp.none,
        distributed_optimizer=any(values.flag(f"{part}.use_distributed_optimizer") for part in ("ddp", "optimizer"))
        or fsdp,
        overlap_grad_reduce=values.flag(LAYOUT["overlap_grad_reduce"], overlap),
        overlap_param_gather=values.flag(LAYOUT["overlap_param_gather"], overlap),
        tp_comm_overlap=values.flag(LAYOUT["tp_comm_overlap"]) or values.flag("model.tp_comm_overlap"),
        dispatcher=_dispatcher(values),
        moe_expert_capacity_factor=values.number(LAYOUT["moe_expert_capacity_factor"], 0.0),
        moe_pad_expert_input_to_capacity=values.flag(LAYOUT["moe_pad_expert_input_to_capacity"]),
        num_layers_in_first_pipeline_stage=values.whole(LAYOUT["num_layers_in_first_pipeline_stage"], 0),
        num_layers_in_last_pipeline_stage=values.whole(LAYOUT["num_layers_in_last_pipeline_stage"], 0),
        account_for_embedding=values.flag(LAYOUT["account_for_embedding"]),
        account_for_loss=values.flag(LAYOUT["account_for_loss"]),
        pipeline_layout=text,
        recompute=Recompute(granularity),
        recompute_modules=list(modules) if granularity == "selective" and isinstance(modules, list) else [],
        recompute_method=RecomputeMethod(values.text(LAYOUT["recompute_method"])),
        recompute_num_layers=values.whole(LAYOUT["recompute_num_layers"], 0),
        optimizer_cpu_offload=values.flag(LAYOUT["optimizer_cpu_offload"]),
        cuda_graphs=values.text(LAYOUT["cuda_graphs"], "none") != "none" or values.flag("model.enable_cuda_graph"),
        fused_cross_entropy=values.flag(LAYOUT["fused_cross_entropy"], True),
        attention_backend=AttentionBackend(backend if backend in set(AttentionBackend) else "auto"),
    )


def _chunks(values: Values, text: str, pp: int) -> int:
    """The virtual size that a layout of chunks gives.

    Raises:
        Refusal: the configuration gives another one too, which one of the two then replaces without a word
            (Megatron-Bridge issues 5008, 5443, 5578, 5640).
    """
    try:
        chunks = len(chunks_of_text(text))
    except ValueError as error:
        raise Refusal(f"{values.where}: {LAYOUT['pipeline_layout']}={text} {error}", "Correct it.") from None
    vpp, given = max(chunks // pp, 1), values.whole(LAYOUT["vpp"], 0)
    if given and given != vpp and chunks % pp == 0:
        raise Refusal(
            f"{values.where}: {LAYOUT['vpp']}={given}, and {LAYOUT['pipeline_layout']}={text} has {chunks} chunks for "
            f"{pp} stages, which is {vpp}",
            "Change the stale one of the two.",
            "pipeline-layout",
        )
    return vpp


def _dispatcher(values: Values) -> Dispatcher:
    word, backend = values.text(LAYOUT["dispatcher"], "allgather"), values.text("model.moe_flex_dispatcher_backend")
    if word == "flex" and backend == "hybridep":
        return Dispatcher.hybridep
    return Dispatcher(word) if word in set(Dispatcher) else Dispatcher.alltoall


def _levers(values: Values) -> Levers:
    heads = ("comm_overlap", "model")
    defers = any(values.flag(f"{head}.defer_embedding_wgrad_compute") for head in heads)
    limit = max(values.whole(f"{head}.wgrad_deferral_limit", 0) for head in heads)
    return Levers(
        sharp=values.flag("dist.use_sharp"),
        wgrad_deferral_limit=max(limit, 0) if defers else 0,
        expert_comm_overlap=any(values.flag(f"{head}.overlap_moe_expert_parallel_comm") for head in heads),
        delay_wgrad=any(values.flag(f"{head}.delay_wgrad_compute") for head in heads),
    )


def _optimizer(values: Values, steps: int) -> Optimizer:
    base = replace(any_adam(), precision_aware=values.flag("optimizer.use_precision_aware_optimizer"))
    held = values.get("optimizer.exp_avg_dtype._target_") or values.text("optimizer.exp_avg_dtype")
    values.get("optimizer.exp_avg_dtype._call_")
    if base.precision_aware:
        base = replace(base, moments=Moments.bf16 if "bfloat16" in held else Moments.fp32)
    values.get("optimizer.optimizer")
    given = {name: values.leaves.get(path) for name, path in OPTIMIZER.items()}
    style = STYLES.get(str(values.leaves.get("scheduler.lr_decay_style", "linear")))
    if not isinstance(given["lr"], int | float) or style is None:
        return base
    constants = {name: float(value) for name, value in given.items() if isinstance(value, int | float)}
    warmup = int(values.leaves.get("scheduler.lr_warmup_iters") or 0)
    ends = int(values.leaves.get("scheduler.lr_decay_iters") or steps)
    made = replace(base, name=READ, **constants, schedule=LrSchedule(style), warmup_steps=warmup, decay_steps=ends)  # type: ignore[arg-type]
    if made.schedule is LrSchedule.constant:
        made = replace(made, decay_steps=0, min_lr=made.lr)
    return base if made.error() else made
