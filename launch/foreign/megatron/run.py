"""The run that Megatron-LM's arguments describe: layout, precision and length, by the rules of its ``validate_args``.

Source: megatron/training/arguments.py of github.com/NVIDIA/Megatron-LM at core_v0.15.3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from slipway import configs
from slipway.configs import Dispatcher, Fsdp, Layout, Model, Optimizer, Precision, Recompute, Refusal, Run, Spec
from slipway.configs.schema.layout import AttentionBackend, RecomputeMethod
from slipway.configs.schema.levers import CudaGraphScope, Levers
from slipway.configs.schema.optimizer import LrSchedule
from slipway.configs.schema.pipeline_layout import chunks_of_text
from slipway.launch.foreign.megatron.arguments import Arguments
from slipway.launch.foreign.megatron.model import model_of
from slipway.launch.foreign.megatron.optimizer import optimizer_of
from slipway.launch.foreign.reading import NO_RUN
from slipway.planner.published.rows import ANY_ADAM

FP8 = {"tensorwise": "fp8_current", "blockwise": "fp8_blockwise", "mxfp8": "mxfp8", "delayed": "fp8_delayed"}
_GRAPH_SCOPES = {"full": "layer", "attn": "attention", "full_iteration": "full_iteration"}
SHARDS_PARAMETERS = "optim_grads_params"  # of --data-parallel-sharding-strategy
NOT_PLANNED = {
    "t5": "an encoder and a decoder",
    "vlm": "a vision encoder",
    "vision": "a vision model",
    "retro": "a retriever",
    "ict": "two encoders",
    "mimo": "several encoders",
    "multimodal": "a vision encoder",
}
"""Words in a program's path, and what the model of that program has beyond a decoder."""
NOT_TRAINING = (
    "generation",
    "generate",
    "inference",
    "tasks",
    "server",
    "convert",
    "export",
    "mmlu",
    "quantize",
    "prune",
)
"""Words in the path of a program that trains nothing."""


@dataclass
class Machines:
    """What starts the ranks, as far as the file says it."""

    gpus: int = 0
    """0: not said."""
    per_node: int = 0
    gpu: str = ""
    program: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def spec_of(args: Arguments, name: str, machines: Machines, assumed: list[str]) -> Spec:
    """The run.

    Args:
        assumed: gains what the arguments leave open.

    Raises:
        Refusal: it is incomplete, contradicts itself, or cannot be planned.
    """
    _require_planned(args, machines.program)
    mamba = "mamba" in machines.program or "mamba" in args.text("spec") or args.flag("is_hybrid_model")
    model = model_of(args, name, assumed, mamba=mamba)
    allocator = machines.environment.get("PYTORCH_CUDA_ALLOC_CONF", "")
    spec = Spec(
        name=name,
        gpus=machines.gpus,
        model=model,
        gpu=configs.gpu(machines.gpu),
        precision=_precision(args),
        layout=_layout(args, model, assumed),
        levers=_levers(args),
        optim=replace(any_adam(), precision_aware=args.flag("use_precision_aware_optimizer")),
        data=configs.Data(name="mock"),
        cluster=configs.Cluster(
            name="file",
            executor="local",
            gpus_per_node=machines.per_node,
            env={"PYTORCH_CUDA_ALLOC_CONF": allocator} if allocator else {},
        ),
    )
    return _with_batch(args, spec)


def _require_planned(args: Arguments, program: str) -> None:
    if any(given.flag in ("--num-tokens-to-generate", "--prompts", "--prompt-file") for given in args.unknown):
        raise Refusal(
            f"{args.where} generates text, and only training can be planned", "Give a training script.", NO_RUN
        )
    parts = re.split(r"[/_.-]", program.lower())
    if word := next((word for word in NOT_TRAINING if word in parts), ""):
        raise Refusal(f"{args.where} runs {program}, which does not train ({word})", "Give a training script.", NO_RUN)
    for word, what in NOT_PLANNED.items():
        if word in parts:
            raise Refusal(f"{args.where} runs {program}, whose model has {what}, which cannot be planned", "")


def _with_batch(args: Arguments, spec: Spec) -> Spec:
    """The spec with its global batch, which is one micro-batch a rank where it is not given, and its length."""
    layout = spec.layout
    gbs = args.whole("global_batch_size") or layout.mbs * max(spec.dp, 1)
    steps, samples = args.whole("train_iters"), args.whole("train_samples")
    if steps and samples:
        raise Refusal(f"{args.where} gives --train-iters and --train-samples", "Give one of them.")
    run = Run(max_steps=max(1, steps or samples // gbs or 1))
    optim = optimizer_of(args, spec.optim, gbs, run.max_steps)
    spec = replace(spec, layout=replace(layout, gbs=gbs), run=run, optim=optim)
    ramp = args.value("rampup_batch_size")
    return replace(spec, optim=replace(spec.optim, batch_ramp=_ramp(args, ramp, spec))) if ramp else spec


def _ramp(args: Arguments, words: list[str], spec: Spec) -> list[str]:
    """``--rampup-batch-size START INCREMENT SAMPLES`` in the notation of ``optim.batch_ramp``."""
    if len(words) != 3 or not all(word.isdigit() for word in words):
        raise Refusal(
            f"{args.where}: --rampup-batch-size {' '.join(words)} is not a start, an increment and samples",
            "Write it as --rampup-batch-size 32 32 5859375.",
        )
    start, increment, samples = map(int, words)
    if start >= spec.layout.gbs or not samples:
        return []
    return [f"{start} by {increment} until {samples * spec.seq_length} tokens"]


def _precision(args: Arguments) -> Precision:
    bf16, fp16, recipe = args.flag("bf16"), args.flag("fp16"), args.text("fp8_recipe")
    if bf16 and fp16:
        raise Refusal(f"{args.where} gives --bf16 and --fp16", "Give one of them.")
    reduced = args.flag("accumulate_allreduce_grads_in_fp32")
    if bf16 and not args.flag("grad_reduce_in_bf16") and args.text("main_grads_dtype") == "fp32":
        reduced = True
    if args.text("fp4"):
        made = configs.precision("nvfp4")
    elif args.text("fp8"):
        made = replace(
            configs.precision(FP8[recipe]),
            fp8_param_gather=args.flag("fp8_param_gather"),
            first_last_layers_bf16=args.flag("first_last_layers_bf16"),
            **_kept_in_bf16(args),
        )
    else:
        made = configs.precision("bf16" if bf16 or fp16 else "fp32")
    return replace(made, grad_reduce_in_fp32=reduced or made.gemm == "fp32")


def _kept_in_bf16(args: Arguments) -> dict[str, Any]:
    """The layers at both ends that stay in bf16; their numbers mean nothing without the switch."""
    names = ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16")
    return {name: args.whole(name) for name in names} if args.flag("first_last_layers_bf16") else {}


def any_adam() -> Optimizer:
    """Adam, whose constants cost nothing, with a constant schedule: no rule judges a schedule that is not read."""
    return replace(ANY_ADAM, name="file", min_lr=ANY_ADAM.lr, schedule=LrSchedule.constant)


def _layout(args: Arguments, model: Model, assumed: list[str]) -> Layout:
    if not args.whole("micro_batch_size"):
        raise Refusal(
            f"{args.where} does not say --micro-batch-size", "Megatron-LM needs it; give the file that has it."
        )
    pp, cuda_graphs = args.whole("pipeline_model_parallel_size"), _cuda_graphs(args)
    fsdp = _fsdp(args, assumed)
    return Layout(
        tp=args.whole("tensor_model_parallel_size"),
        pp=pp,
        vpp=_chunks(args, model.num_layers, pp),
        cp=args.whole("context_parallel_size"),
        ep=args.whole("expert_model_parallel_size"),
        etp=args.whole("expert_tensor_parallel_size"),
        sp=None if args.flag("sequence_parallel") else False,  # Megatron-LM drops it without tensor parallelism
        mbs=args.whole("micro_batch_size"),
        fsdp=fsdp,
        distributed_optimizer=args.flag("use_distributed_optimizer") or fsdp is not Fsdp.none,
        overlap_grad_reduce=args.flag("overlap_grad_reduce"),
        overlap_param_gather=args.flag("overlap_param_gather"),
        tp_comm_overlap=args.flag("tp_comm_overlap"),
        dispatcher=_dispatcher(args),
        moe_expert_capacity_factor=max(float(args.value("moe_expert_capacity_factor") or 0), 0.0),
        moe_pad_expert_input_to_capacity=args.flag("moe_pad_expert_input_to_capacity"),
        num_layers_in_first_pipeline_stage=args.whole("decoder_first_pipeline_num_layers"),
        num_layers_in_last_pipeline_stage=args.whole("decoder_last_pipeline_num_layers"),
        account_for_embedding=args.flag("account_for_embedding_in_pipeline_split"),
        account_for_loss=args.flag("account_for_loss_in_pipeline_split"),
        pipeline_layout=args.text("pipeline_model_parallel_layout").strip("\"'"),
        optimizer_cpu_offload=args.flag("optimizer_cpu_offload"),
        cuda_graphs=cuda_graphs,
        fused_cross_entropy=args.flag("cross_entropy_loss_fusion"),
        attention_backend=_attention(args),
        **_recompute(args),
    )


def _levers(args: Arguments) -> Levers:
    """Overlap and kernels, where Megatron-LM has an argument for them; the rest is as in these recipes."""
    graphs = args.text("cuda_graph_scope")
    return Levers(
        wgrad_deferral_limit=args.whole("wgrad_deferral_limit") if args.flag("defer_embedding_wgrad_compute") else 0,
        bucket_size=args.whole("ddp_bucket_size"),
        align_param_gather=None if args.flag("align_param_gather") else False,
        overlap_param_gather_with_optimizer_step=args.flag("overlap_param_gather_with_optimizer_step"),
        optimizer_instances=args.whole("num_distributed_optimizer_instances"),
        sharp=args.flag("use_sharp"),
        check_for_nan=args.flag("check_for_nan_in_loss_and_grad"),
        moe_router_fusion=args.flag("moe_router_fusion"),
        expert_comm_overlap=args.flag("overlap_moe_expert_parallel_comm"),
        delay_wgrad=args.flag("delay_wgrad_compute"),
        cuda_graph_scope=CudaGraphScope(_GRAPH_SCOPES[graphs]),
    )


def _chunks(args: Arguments, layers: int, pp: int) -> int:
    """The model chunks of a pipeline stage."""
    per_chunk = args.whole("num_layers_per_virtual_pipeline_stage")
    stages, text = args.whole("num_virtual_stages_per_pipeline_rank"), args.text("pipeline_model_parallel_layout")
    ways = {
        "--num-layers-per-virtual-pipeline-stage": per_chunk,
        "--num-virtual-stages-per-pipeline-rank": stages,
        "--pipeline-model-parallel-layout": text,
    }
    if len(given := [flag for flag, value in ways.items() if value]) > 1:
        raise Refusal(f"{args.where} gives {given[0]} and {given[1]}", "Give one of them.")
    if text:
        try:
            chunks = len(chunks_of_text(text.strip("\"'")))
        except ValueError as error:
            raise Refusal(f"{args.where}: --pipeline-model-parallel-layout {text} {error}", "") from None
        return chunks // pp if chunks % pp == 0 else 1
    if not per_chunk:
        return stages or 1
    slots = layers + args.flag("account_for_embedding_in_pipeline_split")
    slots += args.flag("account_for_loss_in_pipeline_split")
    if slots % pp or slots // pp % per_chunk:
        raise Refusal(
            f"{args.where}: --num-layers-per-virtual-pipeline-stage {per_chunk} does not divide the {slots} layers "
            f"over --pipeline-model-parallel-size {pp}",
            "Use a divisor of the layers of a stage.",
        )
    return slots // pp // per_chunk


def _fsdp(args: Arguments, assumed: list[str]) -> Fsdp:
    if args.flag("use_torch_fsdp2"):
        assumed.append("--use-torch-fsdp2 is planned as Megatron-FSDP")
        return Fsdp.megatron
    shards = args.text("data_parallel_sharding_strategy") == SHARDS_PARAMETERS
    return Fsdp.megatron if args.flag("use_megatron_fsdp") and shards else Fsdp.none


def _dispatcher(args: Arguments) -> Dispatcher:
    return Dispatcher.flex if args.flag("moe_enable_deepep") else Dispatcher(args.text("moe_token_dispatcher_type"))


def _cuda_graphs(args: Arguments) -> bool:
    old = args.flag("enable_cuda_graph") or args.flag("external_cuda_graph")
    return old or args.text("cuda_graph_impl") != "none"


def _attention(args: Arguments) -> AttentionBackend:
    backend = AttentionBackend(args.text("attention_backend"))
    if args.flag("use_flash_attn"):
        return AttentionBackend.flash
    local = args.text("transformer_impl") == "local" or args.text("spec") == "local"
    return AttentionBackend.local if local and backend is AttentionBackend.auto else backend


def _recompute(args: Arguments) -> dict[str, Any]:
    """The fields of :class:`Layout` for recompute."""
    granularity = "selective" if args.flag("recompute_activations") else args.text("recompute_granularity")
    modules = args.text("recompute_modules").replace(",", " ").strip("[]").split()
    if args.flag("moe_layer_recompute"):
        granularity, modules = granularity or "selective", [*modules, "moe"]
    made = {
        "recompute": Recompute(granularity or "none"),
        "recompute_method": RecomputeMethod(args.text("recompute_method")),
        "recompute_num_layers": args.whole("recompute_num_layers"),
    }
    return made | {"recompute_modules": modules if granularity == "selective" else []}


def lifted_rules(args: Arguments, spec: Spec) -> frozenset[str]:
    """The rules that an argument makes void which a Spec does not hold.

    Raises:
        Refusal: the argument breaks a condition of its own.
    """
    group, layout = args.whole("microbatch_group_size_per_vp_stage"), spec.layout
    if not group or layout.vpp == 1:
        return frozenset()
    micro_batches = spec.batch.num_micro_batches
    left = micro_batches % group
    if not layout.pp <= group <= micro_batches or 0 < left < layout.pp:
        raise Refusal(
            f"{args.where}: --microbatch-group-size-per-virtual-pipeline-stage {group} does not fit {micro_batches} "
            f"micro-batches over --pipeline-model-parallel-size {layout.pp}",
            f"Use {layout.pp} or more, up to {micro_batches}, such that the last group has {layout.pp} or more.",
        )
    return frozenset({"interleaved-micro-batches"})
