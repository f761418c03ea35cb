"""Rules of the number formats: what the GPU has, what Transformer Engine's kernels accept, what NeMo can train."""

from __future__ import annotations

import math

from slipway.configs import Fsdp, Spec
from slipway.configs.schema import BLACKWELL, HOPPER
from slipway.planner.rules.registry import MCORE, Broken, Framework, Phase, Severity, rule

_CUBLAS_ALIGNMENT = 16  # elements; of the leading dimensions of an fp8 GEMM
_SCALED_BLOCK = 32  # elements that share a scale in mxfp8; the multiple that Transformer Engine also asks of nvfp4
_GATHERED_BLOCK = 128  # elements on a side of the blocks in which blockwise inputs are all-gathered


@rule(
    "precision-gpu",
    says="the GPU's tensor cores support the precision",
    why="each recipe needs the formats of its architecture",
    source="Transformer Engine fp8 check_*_support",
    phase=Phase.step,
)
def precision_gpu(spec: Spec) -> Broken | None:
    """Whether the GPU has the formats of the precision."""
    precision, capability = spec.precision, spec.gpu.compute_capability
    newest = precision.max_compute_capability or capability
    if precision.gemm == "fp32" or precision.min_compute_capability <= capability <= newest:
        return None
    if capability < HOPPER:
        return Broken(f"precision={precision.name} on {spec.gpu.name}, which has no fp8", "Use precision=bf16.")
    usable = "mxfp8 or fp8_current" if capability >= BLACKWELL else "fp8_current, fp8_delayed or fp8_blockwise"
    return Broken(
        f"precision={precision.name} on {spec.gpu.name} (compute capability {capability / 10:.1f})",
        f"Use precision={usable}.",
    )


@rule(
    "fp8-dimensions",
    says="dimensions of fp8 GEMMs are multiples of 16, and of 32 for mxfp8 and nvfp4; with fp8_blockwise and "
    "sequence parallelism the hidden size and the tokens of a rank are multiples of 128",
    why="cuBLAS needs leading dimensions that are multiples of 16, an mxfp8 scale covers 32 elements, and the fp8 "
    "all-gather of blockwise inputs needs whole blocks of 128 (without an all-gather, the scales of a partial block "
    "are padded)",
    source="Transformer Engine 2.11 pytorch.utils.assert_dim_for_fp8_exec and assert_dim_for_all_gather, "
    "tensor.mxfp8_tensor.MXFP8Quantizer.make_empty, "
    "tensor.float8_blockwise_tensor.Float8BlockQuantizer.is_quantizable; common/gemm cuBLAS checks",
    phase=Phase.step,
)
def _fp8_dimensions(spec: Spec) -> Broken | None:
    precision, model, layout = spec.precision, spec.model, spec.layout
    if precision.gemm not in ("fp8", "fp4"):
        return None
    unit = _SCALED_BLOCK if precision.fp8_recipe in ("mxfp8", "nvfp4") else _CUBLAS_ALIGNMENT
    gathered = _GATHERED_BLOCK if precision.fp8_recipe == "blockwise" and layout.sequence_parallel else unit
    rows = spec.seq_length * layout.mbs // layout.cp // (layout.tp if layout.sequence_parallel else 1)
    sizes = {"hidden size": model.hidden_size, "tokens of a rank": rows}
    if model.has_dense_layers:
        sizes["feed-forward channels of a rank"] = model.ffn_hidden_size // layout.tp
    if model.is_moe:
        sizes["expert channels of a rank"] = model.moe_ffn_hidden_size // layout.expert_tp
    for name, size in sizes.items():
        multiple = gathered if name in ("hidden size", "tokens of a rank") else unit
        if size % multiple:
            return Broken(
                f"precision={precision.name}: {name} = {size} is not a multiple of {multiple}",
                _fitting_length(spec, rows, multiple)
                if name == "tokens of a rank"
                else "Use precision=bf16, or a smaller layout.tp.",
            )
    return None


def _fitting_length(spec: Spec, rows: int, multiple: int) -> str:
    """The sequence length just above the given one with which a rank's tokens are a multiple."""
    ranks = spec.seq_length * spec.layout.mbs // rows  # that share a micro-batch's tokens
    unit = math.lcm(multiple * ranks, spec.layout.mbs) // spec.layout.mbs
    length = -(-spec.seq_length // unit) * unit
    return f"Use layout.seq_length={length}, precision=bf16, or a smaller layout.tp or layout.cp."


@rule(
    "fp8-param-gather",
    says="gathering fp8 parameters needs the distributed optimizer or FSDP",
    why="only they hold the fp32 master weights from which fp8 weights are cast",
    source="NVIDIA Megatron-LM issue 2272 and arguments.py",
    phase=Phase.step,
)
def _fp8_param_gather(spec: Spec) -> Broken | None:
    layout = spec.layout
    if spec.precision.fp8_param_gather and not layout.distributed_optimizer and layout.fsdp is Fsdp.none:
        return Broken(
            f"precision={spec.precision.name} gathers fp8 parameters and layout.distributed_optimizer=false",
            "Leave layout.distributed_optimizer on, or use precision.fp8_param_gather=false.",
        )
    return None


@rule(
    "mxfp8-param-gather",
    says="mxfp8 weights are gathered (fp8_param_gather) without overlap_param_gather",
    why="they are gathered through the buffer of the gradients, which is zeroed before each step; with the overlap, "
    "the training loop must copy the weights into it afterwards, and NeMo's does not: the model would train on zeros",
    source="NeMo 2.7.3 MegatronStrategy.training_step; "
    + MCORE
    + "optimizer.MixedPrecisionOptimizer.step_with_ready_grads and distributed.param_and_grad_buffer; the copy is in "
    "NVIDIA Megatron-LM training.train_step",
    phase=Phase.step,
    only_in=Framework.nemo,
)
def _mxfp8_param_gather(spec: Spec) -> Broken | None:
    precision, layout = spec.precision, spec.layout
    if precision.fp8_recipe == "mxfp8" and precision.fp8_param_gather and layout.overlap_param_gather:
        return Broken(
            f"precision.fp8_param_gather=true with precision={precision.name} and layout.overlap_param_gather=true",
            "Use layout.overlap_param_gather=false, or leave precision.fp8_param_gather off.",
        )
    return None


@rule(
    "bf16-layers",
    says="the layers kept in bf16 fit on a stage",
    why="they are counted from a stage's ends",
    source=MCORE + "TransformerConfig.__post_init__",
)
def _bf16_layers(spec: Spec) -> Broken | None:
    precision = spec.precision
    per_stage = spec.model.num_layers // spec.layout.pp
    kept = max(precision.num_layers_at_start_in_bf16, precision.num_layers_at_end_in_bf16)
    if precision.gemm == "fp8" and precision.first_last_layers_bf16 and kept > per_stage:
        return Broken(f"{kept} layers in bf16 with {per_stage} layers a stage", "Use a smaller layout.pp.")
    return None


_TRILLION = 1e12


@rule(
    "delayed-scaling-long",
    says="runs of a trillion tokens and more do not scale fp8 by past steps",
    why="outliers that appear late in training exceed a scale that past steps chose: delayed scaling diverged after "
    "200 billion tokens of Llama 2 7B unless the activations were changed; NVIDIA trains with current or block scaling",
    source="arXiv:2409.12517 section 4; arXiv:2504.03624 section 2.4",
    severity=Severity.advice,
)
def _delayed_scaling_long(spec: Spec) -> Broken | None:
    tokens = spec.run.max_steps * spec.batch.tokens
    if spec.precision.fp8_recipe != "delayed" or tokens < _TRILLION:
        return None
    return Broken(
        f"precision={spec.precision.name} for {tokens / _TRILLION:.3g} T tokens may diverge late",
        "Use precision=fp8_current, or mxfp8 on Blackwell.",
    )
