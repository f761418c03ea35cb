"""Rules of finetuning: adapters, and instructions that share a sequence."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch

from slipway.configs import Adapter, Spec
from slipway.configs.schema import DataKind
from slipway.planner.adapters import MLP, adaptable_layers, adapted_layers, named_by
from slipway.planner.rules.registry import MCORE, Broken, Framework, Phase, rule


def adapts_mlp(spec: Spec) -> bool:
    """Whether the feed-forward layers get an adapter, and with them the experts."""
    return any(name in MLP for name in adapted_layers(spec))


@rule(
    "adapter-size",
    says="an adapter has a rank and an alpha of at least 1, and training of the weights themselves has none",
    why="with a rank of 0 nothing would train, and an alpha of 0 switches the adapter off",
    source="NeMo 2.7.3 collections.llm.peft.lora",
    phase=Phase.never,
    only_in=Framework.nemo,
)
def _adapter_size(spec: Spec) -> Broken | None:
    task = spec.task
    if task.adapter is Adapter.none:
        if task.lora_rank or task.lora_targets:
            return Broken(f"task.lora_rank={task.lora_rank} and task={task.name} trains no adapter", "Use task=lora.")
        return None
    for name in ("lora_rank", "lora_alpha"):
        if not getattr(task, name):
            return Broken(f"task.{name}=0 with task={task.name}", f"Use task.{name}=8.")
    return None


@rule(
    "lora-matches-nothing",
    says="every target of an adapter is a layer of the model",
    why="NeMo leaves out targets that match nothing without a word, and trains nothing where none matches",
    source="NeMo 2.7.3 collections.llm.peft.module_matcher.ModuleMatcher.match",
    phase=Phase.never,
    only_in=Framework.nemo,
)
def _targets(spec: Spec) -> Broken | None:
    task = spec.task
    if task.adapter is Adapter.none:
        return None
    known = adaptable_layers(spec.model)
    fix = f"Use layers of {', '.join(known)}."
    if not task.lora_targets:
        return Broken(f"task.lora_targets=[] with task={task.name}", fix)
    for target in task.lora_targets:
        if not any(fnmatch(name, named_by(target)) for name in known):
            return Broken(f"the target {target} matches no layer of {spec.model.name}", fix)
    return None


@rule(
    "lora-experts-tp",
    says="adapters on experts need layout.etp=1, and with expert parallelism layout.tp=1 too",
    why="with expert-tensor parallelism the adapter of linear_fc2 is wrong from the first loss; with EP and TP the "
    "step fails",
    source="NeMo 2.7.3 collections.llm.peft.utils.ParallelLinearAdapter, on CPU ranks; Megatron-Bridge issue 5634",
    phase=Phase.step,
    only_in=Framework.nemo,
)
def _experts(spec: Spec) -> Broken | None:
    layout = spec.layout
    if spec.task.adapter is Adapter.none or not spec.model.is_moe or not adapts_mlp(spec):
        return None
    sizes = {"layout.etp": layout.expert_tp} | ({"layout.tp": layout.tp} if layout.ep > 1 else {})
    for name, size in sizes.items():
        if size > 1:
            return Broken(
                f"adapters on experts with {name}={size}",
                f"Use task.lora_targets=[{','.join(adaptable_layers(spec.model)[:2])}], or {name}=1.",
            )
    return None


@rule(
    "adapter-levers",
    says="adapters train without deferred weight gradients of the output layer, and beside weights in bf16",
    why="a frozen output layer has no weight gradient, and frozen weights are not gathered",
    source=MCORE + "pipeline_parallel.utils.drain_embedding_wgrad_compute",
    only_in=Framework.nemo,
)
def _levers(spec: Spec) -> Broken | None:
    if spec.task.adapter is Adapter.none:
        return None
    if spec.precision.gemm == "fp8" and spec.precision.fp8_param_gather:
        return Broken(
            f"precision.fp8_param_gather=true with task={spec.task.name}", "Use precision.fp8_param_gather=false."
        )
    if limit := spec.levers.wgrad_deferral_limit:
        return Broken(
            f"levers.wgrad_deferral_limit={limit} with task={spec.task.name}", "Use levers.wgrad_deferral_limit=0."
        )
    return None


def _packed(spec: Spec) -> bool:
    return spec.task.finetunes and spec.data.packed and spec.data.kind is not DataKind.indexed


_PACKED = "NeMo 2.7.3 collections.llm.gpt.model.base.get_packed_seq_params"


def _obstacles(spec: Spec) -> Iterator[tuple[str, str, str]]:
    """What packed sequences cannot have: what it is, why, and the setting without."""
    layout = spec.layout
    if layout.mbs > 1:
        yield f"layout.mbs={layout.mbs}", "a micro-batch is one list of sequences", "layout.mbs=1"
    if layout.cp > 1:
        yield f"layout.cp={layout.cp}", "NeMo splits a batch among context ranks as one sequence", "layout.cp=1"
    if spec.model.mtp_num_layers:
        yield (
            f"model.mtp_num_layers={spec.model.mtp_num_layers}",
            "Megatron-Core predicts further tokens across the ends of sequences",
            "model.mtp_num_layers=0",
        )
    if spec.model.mamba_num_heads:
        yield "Mamba layers", "their state runs through all sequences", "another model"


@rule(
    "packed-sequences",
    says="packed instructions need layout.mbs=1 and layout.cp=1, and a model without multi-token prediction and Mamba",
    why="their boundaries are a list that only attention reads, and NeMo's split among context ranks does not know it",
    source=_PACKED + "; " + MCORE + "utils.get_batch_on_this_cp_rank, transformer.multi_token_prediction",
    phase=Phase.step,
    only_in=Framework.nemo,
)
def _packed_sequences(spec: Spec) -> Broken | None:
    if not _packed(spec):
        return None
    for what, why, without in _obstacles(spec):
        return Broken(f"packed instructions with {what}: {why}", f"Use data.packed=false, or {without}.")
    return None
