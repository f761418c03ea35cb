"""The pipeline stage and model chunk of each layer, as Megatron-Core assigns them.

Source: megatron-core 0.15.3, transformer_block.get_num_layers_to_build and
transformer_layer.get_transformer_layer_offset; pipeline_parallel_layer_layout.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from dataclasses import dataclass, field

from slipway.configs import Layout, Spec
from slipway.configs.schema import LayerKind, LayerShape, Placement, layer_kinds
from slipway.configs.schema.pipeline_layout import DECODER, chunks_of_text, text_of_sizes


@dataclass(frozen=True)
class Chunk:
    """One model chunk: the decoder layers [start, stop), and whether it has the embedding and whether the loss."""

    stage: int
    start: int
    stop: int
    embeds: bool
    loses: bool

    @property
    def num_layers(self) -> int:
        return self.stop - self.start


def stage_layers(num_layers: int, layout: Layout | Placement) -> list[int] | None:
    """Layer slots of each pipeline stage; None if they do not divide, or where a pipeline layout places the layers.

    An embedding or a loss that the layout accounts for takes one slot.
    """
    if layout.pipeline_layout:
        return None
    first, last, pp = (
        layout.num_layers_in_first_pipeline_stage,
        layout.num_layers_in_last_pipeline_stage,
        layout.pp,
    )
    if first or last:
        if layout.account_for_embedding or layout.account_for_loss or pp == 1:
            return None
        middle = pp - bool(first) - bool(last)
        rest = num_layers - first - last
        if rest < 0 or (middle and rest % middle) or (not middle and rest):
            return None
        each = rest // middle if middle else 0
        if middle and not each:
            return None
        return [first or each] + [each] * (pp - 2) + [last or each]
    slots = num_layers + layout.account_for_embedding + layout.account_for_loss
    return None if slots % pp else [slots // pp] * pp


@functools.lru_cache(maxsize=4096)
def chunks(num_layers: int, placement: Placement) -> tuple[Chunk, ...] | None:
    """The model's chunks in the order in which a micro-batch passes them; None if the layers do not divide."""
    pp, vpp = placement.pp, placement.vpp
    if placement.pipeline_layout:
        return _written(num_layers, placement)
    per_stage = stage_layers(num_layers, placement)
    if per_stage is None or any(n % vpp for n in per_stage):
        return None
    out: list[Chunk] = []
    start = 0
    for virtual in range(vpp):
        for stage in range(pp):
            embeds = virtual == 0 and stage == 0
            loses = virtual == vpp - 1 and stage == pp - 1
            count = per_stage[stage] // vpp - (embeds and placement.account_for_embedding)
            count -= loses and placement.account_for_loss
            if count < 0:
                return None
            out.append(Chunk(stage, start, start + count, embeds, loses))
            start += count
    return tuple(out) if start == num_layers else None


def chunks_of(spec: Spec) -> tuple[Chunk, ...] | None:
    """The chunks of a spec's layout; None if its layers do not divide."""
    return chunks(spec.model.num_layers, spec.layout.placement)


@dataclass
class StageLayers:
    """What stands on one stage."""

    kinds: Counter[LayerKind] = field(default_factory=Counter)
    embeds: bool = False
    computes_loss: bool = False


@functools.lru_cache(maxsize=4096)
def layers_of_stages(shape: LayerShape, placement: Placement) -> tuple[StageLayers, ...]:
    """The layers of each stage under a placement; empty if they do not divide."""
    placed, kinds = chunks(shape.num_layers, placement), layer_kinds(shape)
    if placed is None:
        return ()
    out = tuple(StageLayers() for _ in range(placement.pp))
    for chunk in placed:
        stage = out[chunk.stage]
        stage.kinds.update(kinds[chunk.start : chunk.stop])
        stage.embeds |= chunk.embeds
        stage.computes_loss |= chunk.loses
    return out


def _written(num_layers: int, placement: Placement) -> tuple[Chunk, ...] | None:
    """The chunks that a pipeline layout writes down; None where it does not fit the sizes."""
    try:
        pieces = chunks_of_text(placement.pipeline_layout)
    except ValueError:
        return None
    count = placement.pp * placement.vpp
    if len(pieces) != count or sum(chunk.count(DECODER) for chunk in pieces) != num_layers:
        return None
    starts = itertools.accumulate((chunk.count(DECODER) for chunk in pieces), initial=0)
    return tuple(
        Chunk(i % placement.pp, start, start + chunk.count(DECODER), i == 0, i == count - 1)
        for i, (chunk, start) in enumerate(zip(pieces, starts, strict=False))
    )


def spread(num_layers: int, predictions: int, chunks: int) -> str:
    """A pipeline layout that fills the chunks from the front with equally many layers; the last gets what remains.

    The published layouts of DeepSeek-V3 and Kimi-K2 split 61 layers in this way. Where it would leave the last chunk
    empty, the layers are spread as evenly as possible, and the embedding and the loss each count as one layer.
    """
    each = -(-num_layers // chunks)
    last = num_layers - each * (chunks - 1)
    if last < 1:
        return balanced(num_layers, predictions, chunks, at_end=1)
    return text_of_sizes([each] * (chunks - 1) + [last], predictions)


@functools.lru_cache(maxsize=1024)
def balanced(num_layers: int, predictions: int, chunks: int, at_end: int, at_start: int = 1) -> str:
    """A pipeline layout of chunks that differ by one layer at most.

    Args:
        predictions: layers of multi-token prediction, which stand in the last chunk.
        at_end: layers as which the last chunk counts what it holds beside its own.
        at_start: the same of the first chunk, for the embedding.
    """
    slots = num_layers + at_start + at_end
    sizes = [slots // chunks + (i < slots % chunks) for i in range(chunks)]
    # the longer chunks go to the middle, away from the embedding and the loss
    shorter_first = (-slots % chunks) // 2
    sizes = sizes[-shorter_first:] + sizes[:-shorter_first] if shorter_first else sizes
    left, placed = num_layers, []
    for i, size in enumerate(sizes):
        placed.append(left if i == chunks - 1 else min(max(size - at_start * (i == 0), 0), left))
        left -= placed[-1]
    return text_of_sizes(placed, predictions)
