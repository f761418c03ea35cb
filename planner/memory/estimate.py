"""The memory of a layout: GiB of one rank of each pipeline stage by component, and whether the fullest stage fits.

Parameters, gradients and optimizer states are counted tensor by tensor (states.py); activations operation by operation
(activations.py); logits, communication buffers and what lives outside the allocator by formula (here).

Symbols (bytes unless a unit is given):
    t         tokens of a micro-batch on one context rank
    h         hidden size
    act       an element between matrix products
    boundary  the residual stream of one micro-batch, as one rank holds and sends it
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from slipway.configs import Calibration, Fsdp, Layout, Recompute, Schedule, Spec
from slipway.configs.schema import FeedForward, layer_kinds
from slipway.planner.adapters import adapter_parameters
from slipway.planner.memory.activations import layer_bytes
from slipway.planner.memory.states import stage_states
from slipway.planner.numerics import FP32_BYTES
from slipway.planner.parameters import layer
from slipway.planner.stages import StageLayers
from slipway.planner.workload import LayerContext, Workload, workload_of

GIB = 2**30
# Outside the allocator: the CUDA context and kernels, cuDNN and cuBLAS; and NCCL's channels of each process group
# (NCCL_BUFFSIZE of 4 MiB times channels times peers).
CONTEXT_GIB = 1.0
NCCL_GIB_PER_GROUP = 0.35
_ALWAYS_GROUPS = 2  # the world's and the data-parallel group
# cuBLAS and Transformer Engine workspaces, which the allocator never gets back: between steps, Megatron-LM's golden
# values are 0.07 GiB (A100) to 0.11 GiB (H100) above the sum of parameters, gradients and states.
WORKSPACE_GIB = 0.1
# Reserved over allocated by PyTorch's caching allocator. From 1.09 on, the planner refuses the two published runs that
# ran out of memory (Llama 3 70B in fp8 on 32 H100, NeMo's Megatron-Bridge tuning notes). With expandable segments,
# which our recipes set, it is less.
FRAGMENTATION = 1.09
# The load of the experts at the worst moment of a real run, over an even load: the median that explains 82 of
# Megatron-LM's golden peaks (quartiles 1.34 to 1.59; python -m benchmarks.accuracy --golden). Published speeds are
# measured with routing that is forced to be even.
REAL_EXPERT_LOAD = 1.45
# Of one logit at the loss, by whether the loss is fused. Transformer Engine's kernel writes the gradient over the bf16
# value; Megatron-Core's unfused loss also keeps an fp32 copy, which becomes the softmax and then the gradient in place.
# Megatron-LM's golden peaks show the 6.
_LOGITS_BYTES = {True: 2.0, False: 6.0}
# Host memory of one rank: a process with CUDA and its data workers.
_HOST_PROCESS_GIB = 6.0
_EXPERT_LOAD_STEP = 0.001  # resolution of expert_load_that_fits
# Boundary-sized tensors: a pipeline's receive and send buffers in both directions; TP overlap's user buffers of the
# gathered sequence; a multi-token prediction layer's inputs (embedding, two norms, the two joined to twice the width).
_PIPELINE_BUFFERS = 4
_OVERLAP_BUFFERS = 4
_PREDICTION_INPUTS = 5
_FSDP_GATHERED_UNITS = 2  # Megatron-FSDP gathers the next unit while one is computed


@dataclass(frozen=True)
class StageMemory:
    """GiB on one rank of one stage. ``total_gib`` is the allocator's peak; :class:`Memory` has what is outside it."""

    stage: int
    parameters_gib: float
    gradients_gib: float
    optimizer_gib: float
    activations_gib: float
    logits_gib: float
    buffers_gib: float

    @property
    def total_gib(self) -> float:
        return (
            self.parameters_gib
            + self.gradients_gib
            + self.optimizer_gib
            + self.activations_gib
            + self.logits_gib
            + self.buffers_gib
        )

    @property
    def static_gib(self) -> float:
        """What stays between steps, without the workspaces."""
        return self.parameters_gib + self.gradients_gib + self.optimizer_gib

    @property
    def step_gib(self) -> float:
        """What a step adds at its peak to what stays between steps, workspaces included."""
        return self.total_gib - self.static_gib - WORKSPACE_GIB


@dataclass(frozen=True)
class Memory:
    """All stages. ``peak_gib`` is the allocator's peak on the fullest, as torch.cuda.max_memory_allocated counts it."""

    stages: list[StageMemory]
    capacity_gib: float
    outside_gib: float
    host_gib_per_gpu: float
    checkpoint_gib: float

    @property
    def peak_stage(self) -> StageMemory:
        return max(self.stages, key=lambda stage: stage.total_gib)

    @property
    def peak_gib(self) -> float:
        return self.peak_stage.total_gib

    @property
    def reserved_gib(self) -> float:
        """What the caching allocator reserves: the peak and its fragmentation."""
        return self.peak_gib * FRAGMENTATION

    @property
    def needed_gib(self) -> float:
        """What the device must have: what the allocator reserves, and what lives outside it."""
        return self.reserved_gib + self.outside_gib

    @property
    def headroom_gib(self) -> float:
        return self.capacity_gib - self.needed_gib

    @property
    def fits(self) -> bool:
        return self.headroom_gib >= 0


def in_flight(stage: int, pp: int, vpp: int, micro_batches: int, schedule: Schedule = Schedule.auto) -> float:
    """Micro-batches whose activations stage ``stage`` keeps at its peak, in units of a whole stage."""
    if pp == 1:
        return 1.0
    if schedule is Schedule.gpipe:  # every forward pass runs before the first backward pass
        return float(micro_batches)
    if vpp == 1:
        return float(min(micro_batches, pp - stage))
    chunks = min(micro_batches * vpp, (pp - stage - 1) * 2 + (vpp - 1) * pp + 1)
    return chunks / vpp


class Pipeline(NamedTuple):
    """What of a pipeline decides the micro-batches whose activations a stage keeps."""

    pp: int
    vpp: int
    num_micro_batches: int


class StageEstimate:
    """The parts of one rank's peak that a step adds, in bytes, for layouts that differ in their pipeline only.

    Args:
        layout: any of them.
        expert_load: as in :func:`stage_memory`.
        wgrad_deferral_limit: as in :class:`slipway.configs.Levers`.
    """

    def __init__(
        self, layout: Layout, context: LayerContext, expert_load: float, wgrad_deferral_limit: int = 0
    ) -> None:
        lay, model = layout, context.model
        self.layout, self.context, self.wgrad_deferral_limit = layout, context, wgrad_deferral_limit
        self.kinds = {*layer_kinds(model.shape), model.mtp_kind}
        self.layers = {kind: layer_bytes(context, kind, expert_load) for kind in self.kinds}
        self.tokens = context.tokens
        self.act = context.numerics.activation_bytes
        self.boundary = self.act * self.tokens * context.model.hidden_size / context.sequence_shards
        full = lay.recompute is Recompute.full
        # Megatron-Core's recompute_num_layers: with "block" the layers that are recomputed, else the layers of one unit
        self.by_block = full and lay.recompute_method == "block" and lay.recompute_num_layers > 0
        self.unit = lay.recompute_num_layers if full and not self.by_block and lay.recompute_num_layers > 1 else 1

    def kept(self, stage: StageLayers) -> float:
        """What one micro-batch leaves in all layers of a stage."""
        lay, count = self.layout, stage.kinds.total()
        kept = sum(n * self.layers[kind].kept for kind, n in stage.kinds.items())
        if self.by_block:  # the layers after the first few keep everything
            share = max(count - lay.recompute_num_layers, 0) / max(count, 1)
            kept += share * (sum(n * self.layers[kind].whole for kind, n in stage.kinds.items()) - kept)
        else:
            kept /= self.unit
        if lay.cpu_offload_layers:
            kept *= max(count - lay.cpu_offload_layers, 0) / max(count, 1)
        return kept

    def recomputed(self, stage: StageLayers) -> float:
        """What exists only while the backward pass of one layer, or of one recomputed unit, runs."""
        return max((self.layers[kind].working for kind in stage.kinds), default=0.0) * self.unit

    def gradients(self, stage: StageLayers) -> float:
        """The gradients of one layer's widest activation and of its input."""
        model, tp = self.context.model, self.context.tp
        dense = any(kind.feed_forward is FeedForward.dense for kind in stage.kinds)
        widest = 2 * model.ffn_hidden_size / tp if dense else model.hidden_size
        return self.act * self.tokens * widest + 2 * self.boundary

    def logits(self) -> float:
        """Logits of the next token and of every multi-token prediction, and their input and its gradient."""
        context, fused = self.context, self.layout.fused_cross_entropy
        per_logit = context.calibration.logits_bytes or _LOGITS_BYTES[fused]
        vocabulary = context.vocabulary / context.tp
        return (1 + context.model.mtp_num_layers) * (per_logit * self.tokens * vocabulary + 2 * self.boundary)

    def deferred(self, num_micro_batches: int) -> float:
        """The inputs of the output layer and the gradients of its logits whose product waits for the step's end."""
        count = min(self.wgrad_deferral_limit, num_micro_batches)
        gradients = self.context.numerics.unquantized.activation_bytes * self.tokens
        return count * (gradients * self.context.vocabulary / self.context.tp + self.boundary)

    def predictions(self, depth: float) -> float:
        """What ``depth`` micro-batches leave in the multi-token prediction layers."""
        model = self.context.model
        one = self.layers[model.mtp_kind]
        saved = one.whole if self.by_block else one.kept
        return depth * model.mtp_num_layers * (saved + _PREDICTION_INPUTS * self.boundary)

    def buffers(self, pp: int) -> float:
        """Of a stage of a pipeline of ``pp`` stages."""
        lay, context = self.layout, self.context
        gathered_sequence = self.act * self.tokens * context.model.hidden_size
        buffers = WORKSPACE_GIB * GIB
        if pp > 1:
            buffers += _PIPELINE_BUFFERS * self.boundary
        if lay.sequence_parallel:
            buffers += gathered_sequence
        if lay.tp_comm_overlap:
            buffers += _OVERLAP_BUFFERS * gathered_sequence
        if lay.fsdp is not Fsdp.none:
            model, tp = context.model, context.tp
            unit = max(layer(model, kind, tp, context.ep, context.etp).total for kind in set(layer_kinds(model.shape)))
            table = context.vocabulary // tp * model.hidden_size
            buffers += (_FSDP_GATHERED_UNITS * unit + table) * self.act + (unit + table) * FP32_BYTES  # and gradients
        return buffers

    def activations_and_logits(self, index: int, stage: StageLayers, pipeline: Pipeline) -> tuple[float, float]:
        """Of stage ``index``, on which ``stage`` stands."""
        depth = in_flight(index, *pipeline, self.layout.schedule)
        recomputed, gradients = self.recomputed(stage), self.gradients(stage)
        activations = depth * self.kept(stage) + recomputed + gradients
        if stage.embeds:
            activations += depth * self.boundary
        if not stage.computes_loss:
            return activations, 0.0
        logits = self.logits()
        activations += self.predictions(depth)
        if pipeline.pp > 1:
            logits += self.deferred(pipeline.num_micro_batches)
        if pipeline.pp == 1:  # logits exist before the first layer's backward pass, and its working set does not yet
            activations -= min(recomputed + gradients, logits)
        return activations, logits


def stage_memory(spec: Spec, cal: Calibration | None = None, expert_load: float = 1.0) -> list[StageMemory]:
    """GiB of one rank of each stage; its experts are sent ``expert_load`` times the tokens of an even routing."""
    return list(_stages(workload_of(spec, cal), expert_load))


def _stages(work: Workload, expert_load: float) -> Iterator[StageMemory]:
    layout = work.spec.layout
    estimate = StageEstimate(layout, work.context, expert_load, work.spec.levers.wgrad_deferral_limit)
    pipeline = Pipeline(layout.pp, layout.vpp, work.num_micro_batches)
    buffers = estimate.buffers(layout.pp)
    fixed = [stage_states(work.spec, work.context.numerics, shard) for shard in work.shards]
    for index, (stage, states) in enumerate(zip(work.stages, fixed, strict=True)):
        activations, logits = estimate.activations_and_logits(index, stage, pipeline)
        yield StageMemory(
            index,
            states.parameters / GIB,
            states.gradients / GIB,
            states.optimizer / GIB,
            activations / GIB,
            logits / GIB,
            buffers / GIB,
        )


def outside_gib(cal: Calibration, tp: int, pp: int, cp: int, ep: int) -> float:
    """GiB of one rank outside the allocator."""
    groups = _ALWAYS_GROUPS + sum(size > 1 for size in (tp, pp, cp, ep)) + (ep > 1)
    return CONTEXT_GIB + NCCL_GIB_PER_GROUP * groups + cal.extra_memory_gib


def memory(spec: Spec, cal: Calibration | None = None, expert_load: float = 1.0) -> Memory:
    """The memory of a legal spec on its GPU; ``expert_load`` as in :func:`stage_memory`."""
    return workload_memory(workload_of(spec, cal), expert_load)


def workload_memory(work: Workload, expert_load: float = 1.0) -> Memory:
    """As :func:`memory`, of a workload that is derived already."""
    spec, lay, numerics = work.spec, work.spec.layout, work.context.numerics
    # an adapter's checkpoint holds the adapter only
    total = adapter_parameters(spec) if spec.task.lora_rank else work.parameters.total
    checkpoint = (numerics.checkpoint_weight_bytes + numerics.state_bytes) * total
    offloaded = numerics.state_bytes * total / spec.gpus if lay.optimizer_cpu_offload else 0.0
    return Memory(
        stages=list(_stages(work, expert_load)),
        capacity_gib=spec.gpu.usable_memory_gib,
        outside_gib=outside_gib(work.calibration, lay.tp, lay.pp, lay.cp, lay.ep),
        # an asynchronous save drains from a copy of the rank's share of the checkpoint
        host_gib_per_gpu=_HOST_PROCESS_GIB + (checkpoint / spec.gpus + offloaded) / GIB,
        checkpoint_gib=checkpoint / GIB,
    )


def has_room(work: Workload, estimate: Memory, expert_load: float = REAL_EXPERT_LOAD) -> bool:
    """Whether a layout fits: by ``estimate``, its memory, and when experts get ``expert_load`` times an even load."""
    return estimate.fits and (not routes_unevenly(work.spec) or workload_memory(work, expert_load).fits)


def expert_load_that_fits(spec: Spec, cal: Calibration | None = None) -> float:
    """The largest load of a rank's experts, over an even load, before a stage is full; infinite where none fills it.

    A rank is sent at most all tokens of its expert-parallel group. The answer is exact to 0.001.
    """
    return workload_expert_load(workload_of(spec, cal))


def workload_expert_load(work: Workload) -> float:
    """As :func:`expert_load_that_fits`, of a workload that is derived already."""
    low, high = 0.0, float(work.spec.layout.ep)
    if not routes_unevenly(work.spec) or workload_memory(work, high).fits:
        return math.inf
    while high - low > _EXPERT_LOAD_STEP:
        middle = (low + high) / 2
        low, high = (middle, high) if workload_memory(work, middle).fits else (low, middle)
    return low


def routes_unevenly(spec: Spec) -> bool:
    """Whether a rank's experts may be sent more than an even share of the tokens."""
    return spec.model.is_moe and spec.layout.ep > 1 and not spec.layout.moe_expert_capacity_factor
