"""Published runs as specs: rows of a CSV with the columns of the ground truth, and the layouts that configs/layout remembers."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from slipway import configs
from slipway.configs import Calibration, Dispatcher, Fsdp, Layout, Model, Recompute, Refusal, Spec
from slipway.configs.load import ROOT
from slipway.configs.schema import Activation, Normalization, PositionEmbedding
from slipway.planner.flops import model_flops_per_token, peak_tflops
from slipway.planner.memory import memory
from slipway.planner.stages import chunks_of

NEEDED = ("model", "gpu", "n_gpus", "gbs", "mbs", "seq_len", "tp", "pp")
_GPT_VOCABULARY = 51200


@dataclass(frozen=True)
class Row:
    """One row: its spec, or why there is none."""

    spec: Spec | None
    skipped: str
    software: str
    group: str


@functools.cache
def _aliases() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "aliases.yaml").read_text())
    return loaded


def _plain(name: str) -> str:
    bare = re.sub(
        r"\(.*?\)|\b(LoRA|SFT|PEFT|\d+-node)\b", "", name, flags=re.IGNORECASE
    )  # what was done with it, not what it is
    return re.sub(r"[^a-z0-9]", "", bare.lower())


def software_of(source: str, framework: str) -> str:
    """The software generation that a source's rows were measured with; empty if it is none we know."""
    for pattern, name in _aliases()["software"]:
        if pattern in source or pattern in framework:
            return str(name)
    return ""


def _number(row: Mapping[str, str], key: str, default: int) -> int:
    text = (row.get(key) or "").strip()
    if not text or text == "-":
        return default
    value = float(text)
    if value != int(value) or value < 0:
        raise ValueError(f"{key}={text} is not a whole number")
    return int(value)


def _in_notes(row: Mapping[str, str], key: str) -> int:
    """A size that a source states in words: ``hidden=14336 layers=72 nheads=64``; the last statement counts."""
    found = re.findall(rf"\bn?{key}=(\d+)", row.get("notes", ""))
    return int(found[-1]) if found else 0


def find_model(row: Mapping[str, str]) -> Model:
    """The model a row names, or a GPT of its hidden, layers and heads.

    Raises:
        ValueError: the name is unknown and the columns do not describe it.
    """
    name = row.get("model", "")
    known = _aliases()["model"].get(_plain(name)) or (_plain(name) if _plain(name) in configs.model_names() else "")
    for candidate in configs.model_names():
        if not known and _plain(candidate) == _plain(name):
            known = candidate
    hidden, layers, heads = (_number(row, k, 0) or _in_notes(row, k) for k in ("hidden", "layers", "heads"))
    if hidden and layers and not heads:
        heads = hidden // 128
    if known:
        model = configs.model(known)
        return replace(model, num_layers=layers) if layers and layers != model.num_layers and not hidden else model
    if not (hidden and layers and heads):
        raise ValueError(f"unknown model {name!r} without hidden, layers and heads")
    if hidden % heads:
        raise ValueError(f"hidden {hidden} is not a multiple of heads {heads}")
    groups = _number(row, "kv_heads", heads)
    ffn = _number(row, "ffn", 0)
    gated = bool(ffn) and ffn < 4 * hidden and groups < heads
    vocabulary = _number(row, "vocab", 0) or (250880 if "250k" in row.get("notes", "") else _GPT_VOCABULARY)
    return Model(
        name=_plain(name) or "gpt",
        family="gpt3",
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn or 4 * hidden,
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=hidden // heads,
        vocab_size=vocabulary,
        seq_length=_number(row, "seq_len", 2048),
        max_position_embeddings=1 << 30,
        gated_linear_unit=gated,
        activation_func=Activation.silu if gated else Activation.gelu,
        normalization=Normalization.RMSNorm if gated else Normalization.LayerNorm,
        add_bias_linear=not gated,
        add_qkv_bias=not gated,
        position_embedding_type=PositionEmbedding.rope if gated else PositionEmbedding.learned_absolute,
        share_embeddings_and_output_weights=not gated,
    )


def _recompute(text: str) -> dict[str, Any]:
    text = (text or "").strip().lower()
    if text in ("", "none", "0", "false"):
        return {}
    if text.startswith("full") or text in ("1", "true"):
        return {"recompute": Recompute.full}
    inside = re.findall(r"\((.*?)\)", text)
    names = re.split(r"[+,]", inside[0]) if inside else []
    known = {"core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts"}
    if "layer" in names:  # torchtitan: every second layer in full
        return {"recompute": Recompute.selective, "recompute_modules": ["core_attn", "mlp"]}
    if "op" in names:  # torchtitan: of matrix products, every second one is kept
        return {"recompute": Recompute.selective, "recompute_modules": ["layernorm", "mlp"]}
    return {"recompute": Recompute.selective, "recompute_modules": [n for n in names if n in known]}


def spec_of_row(row: Mapping[str, str]) -> Spec:
    """A row of a published table as a spec.

    Raises:
        ValueError: why it cannot be modelled.
        Refusal: likewise.
    """
    notes = row.get("notes", "")
    lora = "lora" in (notes + row.get("model", "") + row.get("source", "")).lower()
    gpu_name = _aliases()["gpu"].get(_plain(row.get("gpu", "")))
    if gpu_name is None:
        raise ValueError(
            f"unknown GPU {row.get('gpu', '')!r}; {configs.nearest(_plain(row.get('gpu', '')), configs.gpu_names())}"
        )
    precision = _aliases()["precision"].get(_plain(row.get("precision", "")))
    if precision is None:
        raise ValueError(f"unknown precision {row.get('precision')!r}")
    if precision.startswith("fp8_delayed") and configs.gpu(gpu_name).compute_capability >= 100:
        precision = "fp8_current"  # no published run on Blackwell uses delayed scaling
    # NVIDIA's tuned recipes, MLPerf and everything in fp16 reduce gradients in 16 bits
    source = row.get("source", "")
    half = (
        any(w in source for w in ("Megatron-Bridge", "training_results", "vTrain", "llm-foundry", "dgxc-benchmarking"))
        or row.get("precision") == "fp16"
    )
    fused = any(
        w in source for w in ("Megatron-Bridge", "training_results", "torchtitan", "maxtext", "llm-foundry")
    )  # NeMo's own recipes did not
    known = configs.precision(precision)
    # Inferred: 405B and 70B in mxfp8 fit the GPUs they ran on only with parameters in fp8.
    fp8_parameters = known.gemm == "fp8" and ("Megatron-Bridge" in source or "training_results" in source)
    model = find_model(row)
    named = row.get("model", "")
    if model.mtp_num_layers and ("w/o MTP" in named or "Automodel" in source):  # FLOPs a token tell which runs had it
        model = replace(model, mtp_num_layers=0)
    dropped = "tokendrop" in named.lower()  # NeMo's MegatronTokenDropCallback: capacity 1, padded
    recompute = (row.get("recompute") or "").strip()
    if "torchtitan" in source and recompute in ("", "selective"):
        recompute = "selective(op)"  # what its configuration says unless told otherwise
    gpus, gbs = _number(row, "n_gpus", 0), _number(row, "gbs", 0)
    if not gpus or not gbs:
        raise ValueError("n_gpus or gbs is not given")
    tp, pp, vpp, cp = (max(_number(row, k, 1), 1) for k in ("tp", "pp", "vpp", "cp"))
    layout = Layout(
        tp=tp,
        pp=pp,
        vpp=vpp if pp > 1 else 1,
        cp=cp,
        ep=max(_number(row, "ep", 1), 1) if model.is_moe else 1,
        etp=_number(row, "etp", 0) or (1 if model.is_moe else 0),
        mbs=max(_number(row, "mbs", 1), 1),
        gbs=gbs,
        seq_length=_number(row, "seq_len", model.seq_length),
        fsdp=Fsdp.megatron if _number(row, "fsdp", 0) else Fsdp.none,
        sp=False
        if "no sequence parallelism" in notes
        or "vTrain" in row.get("source", "")
        or "bigscience" in row.get("source", "")
        else None,
        distributed_optimizer="vTrain" not in row.get("source", ""),
        dispatcher=Dispatcher.flex
        if not dropped and ("DeepEP" in notes or "Bridge" in row.get("framework", "") + row.get("source", ""))
        else Dispatcher.alltoall,
        moe_expert_capacity_factor=1.0 if dropped else 0.0,
        moe_pad_expert_input_to_capacity=dropped,
        # Inferred: with one sequence a micro-batch, Bridge's Qwen3 takes 9 to 11 ms a layer on H100, B200 and B300 alike, which is
        # the host's time, and half of that on GB200: its recipes for Grace parts capture the expert layers' host-bound part.
        cuda_graphs=model.is_moe and "Bridge" in source and gpu_name.startswith("gb"),
        fused_cross_entropy=fused,
        **_recompute(recompute),
    )
    spec = Spec(
        name=model.name,
        gpus=gpus,
        model=model,
        gpu=configs.gpu(gpu_name),
        precision=replace(
            known, grad_reduce_in_fp32=not half, fp8_param_gather=known.fp8_param_gather or fp8_parameters
        ),
        layout=layout,
        optim=configs.Optimizer(
            name="adam",
            lr=1e-4,
            min_lr=1e-5,
            weight_decay=0.1,
            adam_beta1=0.9,
            adam_beta2=0.95,
            adam_eps=1e-8,
            warmup_steps=1,
        ),
        data=configs.Data(name="mock"),
        cluster=configs.Cluster(name="none", executor="local"),
        task=configs.task("lora" if lora else "pretrain"),
    )
    if gpus % (tp * pp * cp):
        raise ValueError(f"tp x pp x cp = {tp * pp * cp} does not divide {gpus} GPUs")
    if gbs < spec.dp * layout.mbs:
        raise ValueError(f"gbs={gbs} cannot feed {spec.dp} data-parallel ranks with mbs={layout.mbs}")
    if layout.ep > 1 and model.num_moe_experts % layout.ep:
        raise ValueError(f"ep={layout.ep} does not divide {model.num_moe_experts} experts")
    each = -(-model.num_layers // pp)
    if "bigscience" in source and model.num_layers % pp and each * (pp - 1) < model.num_layers:
        # DeepSpeed fills the stages from the front, the embedding beside the first one's layers
        spec = replace(
            spec, layout=replace(layout, num_layers_in_last_pipeline_stage=model.num_layers - each * (pp - 1))
        )
    else:
        spec = fit_pipeline(spec)
    return fit_memory(spec) if model.is_moe and not recompute else spec


# What tuned recipes of expert models recompute, by what it costs.
_LIGHTEST_FIRST = (
    ("layernorm", "moe_act"),
    ("layernorm", "moe_act", "mla_up_proj"),
    ("moe",),
    ("moe", "layernorm", "mla_up_proj", "mlp"),
)


def fit_memory(spec: Spec) -> Spec:
    """The spec with the least recompute that its GPU's memory allows, for tables that do not say what was recomputed."""
    if _holds(spec):
        return spec
    for modules in _LIGHTEST_FIRST:
        trial = replace(
            spec, layout=replace(spec.layout, recompute=Recompute.selective, recompute_modules=list(modules))
        )
        if _holds(trial):
            return trial
    return replace(spec, layout=replace(spec.layout, recompute=Recompute.full))


def _holds(spec: Spec) -> bool:
    """Whether the peak goes into the GPU; these runs lived, so nothing is set aside for fragmentation."""
    held = memory(spec, Calibration(name="published"))
    return held.peak_gib + held.outside_gib <= held.capacity_gib


def fit_pipeline(spec: Spec) -> Spec:
    """The spec with the first way of splitting its layers that goes even: plain, loss and embedding counted, flexible."""
    for embedding, loss in ((False, False), (True, True), (False, True), (True, False)):
        trial = replace(spec, layout=replace(spec.layout, account_for_embedding=embedding, account_for_loss=loss))
        if chunks_of(trial) is not None:
            return trial
    return replace(spec, layout=replace(spec.layout, flexible_pipeline=True))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV in the ground truth's columns.

    Raises:
        Refusal: no file, no rows, or a needed column missing.
    """
    if not path.is_file():
        raise Refusal(f"there is no file {path}")
    try:
        with path.open(newline="", encoding="utf-8") as f:
            reader = csv.DictReader(f)
            rows = list(reader)
            columns = reader.fieldnames or []
    except UnicodeDecodeError as error:
        raise Refusal(f"{path} is not UTF-8 at byte {error.start}") from None
    missing = [c for c in NEEDED if c not in columns]
    if missing:
        raise Refusal(f"{path} has no column {missing[0]}", "Needed are " + ", ".join(NEEDED) + ".")
    if not rows:
        raise Refusal(f"{path} holds no rows")
    return rows


def stated(row: Mapping[str, str], key: str) -> float:
    """A positive number that a row states; 0 if it does not."""
    try:
        return max(float(row.get(key) or 0.0), 0.0)
    except ValueError:
        return 0.0


def stated_rate(row: Mapping[str, str], spec: Spec) -> float:
    """Tokens/s per GPU that a row states, or that its step time comes to; 0 if it has neither."""
    rate, step = stated(row, "tokens_per_s_per_gpu"), stated(row, "step_time_s")
    return rate or (spec.batch.tokens / step / spec.gpus if step else 0.0)


def _require_possible(spec: Spec, row: Mapping[str, str]) -> None:
    """Refuse a speed beyond the GPU's peak: its sizes are not those of the run that was measured."""
    needed = stated_rate(row, spec) * model_flops_per_token(spec) * 1e-12
    if not spec.task.lora_rank and needed > peak_tflops(spec):
        raise ValueError(f"the stated speed would take {needed:.0f} TFLOP/s of a GPU that has {peak_tflops(spec):.0f}")


def interpret(rows: Iterable[Mapping[str, str]]) -> list[Row]:
    """Every row as a spec or with the reason why not."""
    out: list[Row] = []
    for row in rows:
        software = software_of(row.get("source", ""), row.get("framework", ""))
        group = row.get("source", "").split(" @")[0][:60]
        try:
            spec = spec_of_row(row)
            _require_possible(spec, row)
            out.append(Row(spec, "", software, group))
        except (ValueError, Refusal, ZeroDivisionError) as error:
            reason = error.sentence() if isinstance(error, Refusal) else str(error)
            out.append(Row(None, reason, software, group))
    return out
