"""Rows of published tables as specs: sizes from the row, software behaviour from the stack of its citation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from slipway import configs
from slipway.configs import Dispatcher, Fsdp, Layout, Model, Precision, Recompute, Refusal, Spec, Task
from slipway.configs.stack import UNKNOWN, CudaGraphs, Stack, stack, stack_of
from slipway.planner.flops import model_flops_per_token, peak_tflops
from slipway.planner.published.inferred import fit_memory, split_layers
from slipway.planner.published.names import find_gpu, find_model, find_precision
from slipway.planner.published.table import size, stated, whole_number
from slipway.planner.rules import SELECTIVE_MODULES

GROUP_NAME_LENGTH = 60  # characters of a source's name in summaries
# torchtitan's selective recompute, as the modules of Megatron-Core that free about as much.
_TORCHTITAN_RECOMPUTE = {
    "layer": ["core_attn", "mlp"],  # every second layer is recomputed
    "op": ["layernorm", "mlp"],  # of the matrix products, every second one is kept
}
# Published tables do not state the optimizer's hyperparameters, and they cost nothing.
ANY_ADAM = configs.Optimizer(
    name="adam",
    lr=1e-4,
    min_lr=1e-5,
    weight_decay=0.1,
    adam_beta1=0.9,
    adam_beta2=0.95,
    adam_eps=1e-8,
    warmup_steps=1,
)


@dataclass(frozen=True)
class Row:
    """One row: its spec, or the reason why it has none."""

    spec: Spec | None
    skipped: str
    stack: Stack
    group: str

    @property
    def software(self) -> str:
        """The generation of the planner's constants; empty if the stack has none."""
        return self.stack.generation


def spec_of_row(row: Mapping[str, str]) -> Spec:
    """A row of a published table as a spec.

    Raises:
        ValueError: the row cannot be modelled; the message says why.
        Refusal: likewise.
    """
    known = stack_of(row.get("source", ""), row.get("framework", ""))
    gpu = find_gpu(row)
    precision = configs.precision(find_precision(row, gpu))
    model = _trained_model(row, known)
    layout = _layout(row, model, gpu, known)
    spec = Spec(
        name=model.name,
        gpus=whole_number(row, "n_gpus", 0),
        model=model,
        gpu=configs.gpu(gpu),
        precision=_trained_precision(row, precision, known),
        layout=layout,
        # Benchmarks turn the NaN check off: NeMo 2.7.3 scripts/performance/helpers.py.
        levers=configs.Levers(check_for_nan=False, bucket_size=0),
        optim=ANY_ADAM,
        data=configs.Data(name="mock"),
        cluster=configs.Cluster(name="none", executor="local"),
        task=_task(row),
    )
    _require_divisible(spec)
    spec = split_layers(spec, known.pipeline_split)
    recompute_is_stated = bool(_recompute_text(row, known))
    return fit_memory(spec) if model.is_moe and not recompute_is_stated else spec


def _task(row: Mapping[str, str]) -> Task:
    """LoRA as in NeMo's performance recipes, which adapt one layer of four; else pretraining: SFT costs the same."""
    if not _is_lora(row):
        return configs.task("pretrain")
    return replace(configs.task("lora"), lora_targets=["linear_qkv"])


def _is_lora(row: Mapping[str, str]) -> bool:
    return "lora" in (row.get("notes", "") + row.get("model", "") + row.get("source", "")).lower()


def _drops_tokens(row: Mapping[str, str]) -> bool:
    """Whether experts drop tokens beyond a capacity (NeMo's MegatronTokenDropCallback: factor 1, padded)."""
    return "tokendrop" in row.get("model", "").lower()


def _trained_model(row: Mapping[str, str], known: Stack) -> Model:
    """The row's model, without multi-token prediction where the row or its stack leaves that out."""
    model = find_model(row)
    without = "w/o MTP" in row.get("model", "") or not known.multi_token_prediction
    return replace(model, mtp_num_layers=0) if without else model


def _trained_precision(row: Mapping[str, str], precision: Precision, known: Stack) -> Precision:
    """The precision as the stack trains in it. Runs in fp16 reduce gradients in fp16 (Megatron-LM's default)."""
    in_16_bits = not known.grad_reduce_in_fp32 or row.get("precision") == "fp16"
    fp8_parameters = known.fp8_param_gather and precision.gemm == "fp8"
    return replace(
        precision,
        grad_reduce_in_fp32=not in_16_bits,
        fp8_param_gather=precision.fp8_param_gather or fp8_parameters,
    )


def _recompute_text(row: Mapping[str, str], known: Stack) -> str:
    """What the row states of recompute, or what its silence means in its stack; empty if neither says anything."""
    text = (row.get("recompute") or "").strip()
    return known.recompute if known.recompute and text in ("", "selective") else text


def _recompute(text: str) -> dict[str, Any]:
    """Keys of :class:`Layout` for a table's words: none, full, selective, or selective(module+module)."""
    text = text.strip().lower()
    if text in ("", "none", "0", "false"):
        return {}
    if text.startswith("full") or text in ("1", "true"):
        return {"recompute": Recompute.full}
    in_brackets = re.findall(r"\((.*?)\)", text)
    names = re.findall(r"\w+", in_brackets[0]) if in_brackets else []
    for word, modules in _TORCHTITAN_RECOMPUTE.items():
        if word in names:
            return {"recompute": Recompute.selective, "recompute_modules": list(modules)}
    return {
        "recompute": Recompute.selective,
        "recompute_modules": [name for name in names if name in SELECTIVE_MODULES],
    }


# NVIDIA's performance recipes overlap tensor-parallel communication (configs/levers/nvidia.csv).
_WITH_USER_BUFFERS = ("nemo_2024", "nemo_2025", "bridge_2025", "bridge_2026_spring", "bridge_2026_summer")


def _layout(row: Mapping[str, str], model: Model, gpu: str, known: Stack) -> Layout:
    """The row's sizes, and beside them what its stack does.

    Raises:
        ValueError: the row does not state its GPUs or its batch, or a size is not a whole number.
    """
    gpus, gbs = whole_number(row, "n_gpus", 0), whole_number(row, "gbs", 0)
    if not gpus or not gbs:
        raise ValueError("n_gpus or gbs is not given")
    tp, pp, vpp, cp = (size(row, key) for key in ("tp", "pp", "vpp", "cp"))
    notes, drops = row.get("notes", ""), _drops_tokens(row)
    with_sequence_parallel = known.sequence_parallel and "no sequence parallelism" not in notes
    dispatcher = Dispatcher.flex if "DeepEP" in notes else known.dispatcher
    return Layout(
        tp=tp,
        pp=pp,
        vpp=vpp if pp > 1 else 1,
        cp=cp,
        ep=size(row, "ep") if model.is_moe else 1,
        etp=whole_number(row, "etp", 0) or (1 if model.is_moe else 0),
        mbs=size(row, "mbs"),
        gbs=gbs,
        seq_length=whole_number(row, "seq_len", model.seq_length),
        fsdp=Fsdp.megatron if whole_number(row, "fsdp", 0) else Fsdp.none,
        sp=None if with_sequence_parallel else False,
        distributed_optimizer=known.distributed_optimizer,
        dispatcher=Dispatcher.alltoall if drops else dispatcher,
        moe_expert_capacity_factor=1.0 if drops else 0.0,
        moe_pad_expert_input_to_capacity=drops,
        tp_comm_overlap=known.generation in _WITH_USER_BUFFERS
        and tp > 1
        and with_sequence_parallel
        and not model.is_mla,
        cuda_graphs=model.is_moe and known.cuda_graphs is CudaGraphs.experts_on_grace and gpu.startswith("gb"),
        fused_cross_entropy=known.fused_cross_entropy,
        **_recompute(_recompute_text(row, known)),
    )


def _require_divisible(spec: Spec) -> None:
    """Raise ValueError where the sizes cannot be those of one run."""
    lay, experts = spec.layout, spec.model.num_moe_experts
    if spec.gpus % (lay.tp * lay.pp * lay.cp):
        raise ValueError(f"tp x pp x cp = {lay.tp * lay.pp * lay.cp} does not divide {spec.gpus} GPUs")
    if lay.gbs < spec.dp * lay.mbs:
        raise ValueError(f"gbs={lay.gbs} cannot feed {spec.dp} data-parallel ranks with mbs={lay.mbs}")
    if lay.ep > 1 and experts % lay.ep:
        raise ValueError(f"ep={lay.ep} does not divide {experts} experts")


def stated_rate(row: Mapping[str, str], spec: Spec) -> float:
    """Tokens/s per GPU that a row states, or that follows from its step time; 0 if it states neither."""
    rate, step_time_s = stated(row, "tokens_per_s_per_gpu"), stated(row, "step_time_s")
    return rate or (spec.batch.tokens / step_time_s / spec.gpus if step_time_s else 0.0)


def _require_possible(spec: Spec, row: Mapping[str, str]) -> None:
    """Raise ValueError for a speed beyond the GPU's peak: the row's sizes are not those of the measured run."""
    needed_tflops = stated_rate(row, spec) * model_flops_per_token(spec) * 1e-12
    if needed_tflops > peak_tflops(spec):
        raise ValueError(
            f"the stated speed would take {needed_tflops:.0f} TFLOP/s of a GPU that has {peak_tflops(spec):.0f}"
        )


def interpret(rows: Iterable[Mapping[str, str]]) -> list[Row]:
    """Every row as a spec, or with the reason why it cannot be one."""
    return [_interpret(row) for row in rows]


def _interpret(row: Mapping[str, str]) -> Row:
    group = row.get("source", "").split(" @")[0][:GROUP_NAME_LENGTH]
    known = stack(UNKNOWN)
    try:
        known = stack_of(row.get("source", ""), row.get("framework", ""))
        spec = spec_of_row(row)
        _require_possible(spec, row)
    except (ValueError, Refusal, ZeroDivisionError) as error:
        reason = error.sentence() if isinstance(error, Refusal) else str(error)
        return Row(None, reason, known, group)
    return Row(spec, "", known, group)
