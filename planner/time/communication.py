"""Communication outside the blocks: tensor-parallel gathers, the data-parallel exchange of gradients and weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from slipway.configs import Fsdp
from slipway.planner.levers import bucket_size
from slipway.planner.numerics import FP32_BYTES, Numerics
from slipway.planner.parameters import Shard
from slipway.planner.time.kernels import Device
from slipway.planner.time.links import Link, link
from slipway.planner.time.operations import Gathers, Group, Module, Operation, Term
from slipway.planner.workload import LayerContext, Workload

# Share of tensor-parallel communication that Transformer Engine's user buffers hide under products, at least, where the
# constants are fitted to runs without them: just above the largest that is fitted to runs with them (0.69).
_USER_BUFFER_OVERLAP = 0.7
# Of what is hidden with user buffers, what is hidden without them where the constants are fitted to runs with them.
# Assumed: the gathers of the backward pass overlap by themselves, and those of the forward pass do not.
_WITHOUT_USER_BUFFERS = 0.5
# Of an all-reduce that network switches add up (SHARP): one pass of the data over the links for two. The sharded
# reduction and the gather of the distributed optimizer move as much as before.
_SHARP_ALL_REDUCE = 0.5
# Times that an optimizer step takes longer with its states in host memory, over HBM: assumed; no published run shows
# it.
_HOST_OPTIMIZER = 8.0
_NORM_BYTES = FP32_BYTES  # the gradient's norm reads it
_OPTIMIZER_KERNELS = 4
# Share of a send that stays exposed with interleaving, where the next chunk hides the rest: assumed.
_INTERLEAVED_SEND = 0.5


def tensor_parallel(context: LayerContext, blocks: int) -> Iterator[Operation | Module]:
    """One gather and one scatter a block and pass with sequence parallelism; all-reduces of the same volume without."""
    if context.tp == 1:
        return
    whole = context.element_bytes * context.tokens * context.model.hidden_size
    # with sequence parallelism the input is gathered again for the weight gradient
    backward = 3 if context.sequence_parallel and not context.lora_rank else 2
    group = Group(context.tp, 1)
    yield Gathers(Term.tensor_parallel, group, whole, 2 * blocks, backward * blocks, _hidden(context), 2 * blocks)


def _hidden(context: LayerContext) -> float:
    """The share of tensor-parallel communication that nobody waits for."""
    fitted = context.calibration.tp_overlap
    if context.calibration.user_buffers:
        return fitted if context.tp_comm_overlap else _WITHOUT_USER_BUFFERS * fitted
    return max(fitted, _USER_BUFFER_OVERLAP) if context.tp_comm_overlap else fitted


@dataclass(frozen=True)
class DataParallel:
    """Seconds once a step: of communication that nothing hides, and of the optimizer."""

    exposed: float = 0.0
    optimizer: float = 0.0


def data_parallel(work: Workload, device: Device, window: float) -> DataParallel:
    """The reduction of gradients, the gathering of parameters, and the optimizer step, on the slowest stage.

    Args:
        window: seconds of compute under which the communication can hide: one micro-batch's forward and backward.
    """
    spec, lay = work.spec, work.spec.layout
    if spec.task.lora_rank:  # adapters are under a thousandth of the weights
        return DataParallel()
    fsdp = lay.fsdp is not Fsdp.none
    largest = max(shard.total for shard in work.shards)
    exchanged, optimizer = _slowest_stage(
        device,
        work.context.numerics,
        _Ranks(
            dense=max(spec.dp, 1) * lay.cp,
            dense_stride=lay.tp,
            expert=spec.expert_dp,
            expert_stride=lay.ep * lay.expert_tp,
            instances=spec.levers.optimizer_instances,
            sharp=spec.levers.sharp,
            checks_for_nan=spec.levers.check_for_nan,
            shards_optimizer=lay.distributed_optimizer or fsdp,
            # weights are gathered for the forward and again for the backward pass of every micro-batch
            weight_gathers=2 * work.num_micro_batches if fsdp else int(lay.distributed_optimizer),
        ),
        frozenset(work.shards),
    )
    if lay.optimizer_cpu_offload:
        optimizer *= _HOST_OPTIMIZER
    # Nothing hides the last bucket: it is reduced after the backward pass has ended.
    return DataParallel(_exposed(work, exchanged, window, min(1.0, bucket_size(spec) / largest)), optimizer)


class _Ranks(NamedTuple):
    """The ranks that hold the same weights, how far apart they are, and what they do once a step."""

    dense: int
    dense_stride: int
    expert: int
    expert_stride: int
    instances: int
    sharp: bool
    checks_for_nan: bool
    shards_optimizer: bool
    weight_gathers: int


@dataclass(frozen=True)
class _Group:
    """The ``size`` ranks, ``stride`` apart, that hold the same weights, in ``instances`` parts that share states."""

    device: Device
    size: int
    stride: int
    instances: int

    @property
    def sharers(self) -> int:
        """Ranks over which one copy of the optimizer states is sharded."""
        return max(self.size // self.instances, 1)

    @property
    def within(self) -> Link:
        """Between the ranks that share one copy of the optimizer states."""
        return link(self.device, self.sharers, self.stride)

    @property
    def across(self) -> Link:
        """Between the ranks that hold the same part of the states."""
        return link(self.device, self.instances, self.stride * self.sharers)


@functools.lru_cache(maxsize=16384)
def _slowest_stage(device: Device, numerics: Numerics, ranks: _Ranks, shards: frozenset[Shard]) -> tuple[float, float]:
    """Seconds of the data-parallel exchange and of the optimizer on the stages where they are longest."""
    dense_group = _Group(device, ranks.dense, ranks.dense_stride, ranks.instances)
    expert_group = _Group(device, ranks.expert, ranks.expert_stride, ranks.instances)
    exchanged = optimizer = 0.0
    for shard in shards:
        dense = _exchange(numerics, ranks, dense_group, shard.dense)
        expert = _exchange(numerics, ranks, expert_group, shard.expert)
        exchanged = max(exchanged, dense + expert)
        sharded = shard.dense / dense_group.sharers + shard.expert / expert_group.sharers
        updated = sharded if ranks.shards_optimizer else float(shard.total)
        streamed = updated * numerics.adam_bytes + shard.total / ranks.dense * _NORM_BYTES
        if ranks.checks_for_nan:
            streamed += shard.total * numerics.reduced_gradient_bytes
        optimizer = max(optimizer, device.stream(streamed, _OPTIMIZER_KERNELS))
    return exchanged, optimizer


def _exposed(work: Workload, exchanged: float, window: float, last_bucket: float) -> float:
    """What is left of ``exchanged`` seconds when compute hides what it can, which is not the share ``last_bucket``."""
    lay, cal = work.spec.layout, work.calibration
    if not cal.overlapped or not lay.overlap_grad_reduce:
        return exchanged
    if lay.fsdp is not Fsdp.none:  # each unit's weights are waited for where they are needed, in both passes
        return exchanged - cal.dp_overlap * min(exchanged, window)
    return max(exchanged - cal.dp_overlap * window, last_bucket * exchanged)


def _exchange(numerics: Numerics, ranks: _Ranks, group: _Group, count: int) -> float:
    """Seconds to reduce the gradients of ``count`` parameters, and to gather the parameters where they are sharded."""
    if not count or group.size == 1:
        return 0.0
    gradients, weights = count * numerics.reduced_gradient_bytes, count * numerics.gathered_weight_bytes
    if not ranks.weight_gathers:
        # in the switches each rank sends its gradients once and receives the sum
        return group.within.all_reduce(gradients) * (_SHARP_ALL_REDUCE if ranks.sharp else 1.0)
    seconds = ranks.weight_gathers * group.within.gather(weights) + group.within.gather(gradients)
    if ranks.instances > 1:
        seconds += group.across.all_reduce(gradients / group.sharers) * (_SHARP_ALL_REDUCE if ranks.sharp else 1.0)
    return seconds


def send_seconds(work: Workload, device: Device) -> float:
    """Seconds from a stage's end of a pass to its neighbour's start."""
    spec, lay, context = work.spec, work.spec.layout, work.context
    if lay.pp == 1:
        return 0.0
    boundary = link(device, lay.pp, max(1, spec.gpus // lay.pp))
    moved = context.element_bytes * context.tokens * context.model.hidden_size / context.sequence_shards
    return boundary.send(moved) * (_INTERLEAVED_SEND if lay.vpp > 1 else 1.0)
