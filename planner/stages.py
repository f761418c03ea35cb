"""The pipeline stage and model chunk of each layer, as Megatron-Core assigns them.

Source: megatron-core 0.15.3, transformer_block.get_num_layers_to_build and
transformer_layer.get_transformer_layer_offset.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field

from slipway.configs import Layout, Spec
from slipway.configs.schema import LayerKind, LayerShape, Placement, layer_kinds


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
    """Layer slots of each pipeline stage; None if they do not divide.

    An embedding or a loss that the layout accounts for takes one slot.
    """
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
    if placement.flexible_pipeline:
        return _spread(num_layers, pp, vpp)
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


def _spread(num_layers: int, pp: int, vpp: int) -> tuple[Chunk, ...]:
    """Fill the chunks from the front with equally many layers; the last one, which has the loss, gets what remains.

    The published layouts of DeepSeek-V3 and Kimi-K2 split 61 layers in this way. Where it would leave a chunk empty,
    the layers are spread as evenly as possible, and the embedding and the loss each count as one layer.
    """
    count = pp * vpp
    each = -(-num_layers // count)
    sizes = [each] * (count - 1) + [num_layers - each * (count - 1)]
    if sizes[-1] < 1:
        slots = [(num_layers + 2) // count + (i < (num_layers + 2) % count) for i in range(count)]
        # the longer chunks go to the middle, away from the embedding and the loss
        extra = (-(num_layers + 2) % count) // 2
        slots = slots[-extra:] + slots[:-extra] if extra else slots
        sizes, left = [], num_layers
        for i, slot in enumerate(slots):
            sizes.append(left if i == count - 1 else min(max(slot - (i == 0), 0), left))
            left -= sizes[-1]
    starts = [sum(sizes[:i]) for i in range(count)]
    return tuple(
        Chunk(i % pp, start, start + size, i == 0, i == count - 1)
        for i, (start, size) in enumerate(zip(starts, sizes, strict=True))
    )
