"""What memory and time both need of a spec, derived once: calibration, chunks, shards, the context of a layer.

The data flows down from here. Nothing below asks the spec again which layers stand on which stage, how a tensor is
split, or what its elements cost.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

from slipway.configs import Calibration, Dispatcher, Gpu, Model, Recompute, Spec
from slipway.configs.schema import CudaGraphScope, LayerKind, LayerShape, layer_kinds
from slipway.planner.adapters import adapted_layers
from slipway.planner.calibration import calibration_for
from slipway.planner.flops import attention_width, sent_to_experts
from slipway.planner.numerics import Numerics, numerics_of
from slipway.planner.parameters import ParameterCount, Shard, parameters, stage_shards
from slipway.planner.stages import Chunk, StageLayers, chunks_of, layers_of_stages

UNFUSED_BACKENDS = ("unfused", "local")  # Megatron-Core's attention backends that write the scores to memory


@dataclass(frozen=True, kw_only=True)
class LayerContext:
    """Everything that the memory and the time of one layer depend on.

    Layouts that split a layer alike share one context, whatever their pipeline, so that a layer is priced once for all
    of them.
    """

    model: Model
    gpu: Gpu
    calibration: Calibration
    numerics: Numerics
    tp: int
    cp: int
    ep: int
    etp: int
    mbs: int
    seq_length: int
    sequence_parallel: bool
    drops: bool  # dropout masks are written, kept and read
    keeps_scores: bool  # attention writes its scores to memory and keeps them for the backward pass
    recompute: Recompute
    recompute_modules: tuple[str, ...]  # with selective; never empty there
    tp_comm_overlap: bool
    cuda_graphs: bool
    cuda_graph_scope: CudaGraphScope
    fused_router: bool
    hides_expert_exchange: bool  # under the compute of another micro-batch
    fused_cross_entropy: bool
    vocabulary: int  # rows of the embedding and of the logits on all tensor ranks, padding included
    lora_rank: int  # 0: every weight is trained
    adapted: tuple[str, ...]  # the frozen layers beside which adapters train
    qk: float  # query-key channels of one rank, summed over its heads
    v: float  # value channels of one rank
    expert_capacity: float  # over an expert's even share of tokens; 0: an expert takes whatever it is sent
    sent_to_experts: float  # tokens that experts compute, over those routed
    pads_experts: bool  # every expert is filled up to its capacity
    sends_once_per_node: bool  # the dispatcher sends one copy of a token to a node, however many experts it meets
    tokens: float = field(init=False, compare=False)  # of a micro-batch on one context rank
    sequence_shards: int = field(init=False, compare=False)  # ranks that share the sequence between TP's regions

    def __post_init__(self) -> None:
        # Read tens of thousands of times in a search: a cached property takes a lock at every reading in Python 3.11.
        object.__setattr__(self, "tokens", self.mbs * self.seq_length / self.cp)
        object.__setattr__(self, "sequence_shards", self.tp if self.sequence_parallel else 1)
        # A context is a cache's key in every layer's price: hashing its model and its calibration anew costs more.
        object.__setattr__(self, "_hash", hash(tuple(getattr(self, name) for name in _CONTEXT_KEYS)))

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined,no-any-return]

    @functools.cached_property
    def without_recompute(self) -> LayerContext:
        """The same layer with nothing recomputed: layouts that differ in recompute only share it."""
        if self.recompute is Recompute.none:
            return self
        return replace(self, recompute=Recompute.none, recompute_modules=())

    @functools.cached_property
    def unquantized(self) -> LayerContext:
        """The context of a layer that a quantized run keeps in bf16."""
        return replace(self, numerics=self.numerics.unquantized)

    def kept_input_bytes(self, *layers: str) -> float:
        """Bytes of an element of the input that linear layers keep for their backward pass.

        A frozen layer needs none for a weight gradient; an adapter beside it needs it, and is never quantized.
        """
        if not self.lora_rank:
            return self.numerics.saved_input_bytes
        return self.numerics.activation_bytes if any(layer in self.adapted for layer in layers) else 0.0

    @property
    def element_bytes(self) -> float:
        """Bytes of an activation's element, as its kernels read and write it."""
        return self.numerics.activation_bytes


_CONTEXT_KEYS = tuple(f.name for f in fields(LayerContext) if f.init)
_SENDS_ONCE_PER_NODE = (Dispatcher.flex, Dispatcher.hybridep)


def layer_context(spec: Spec, calibration: Calibration) -> LayerContext:
    """The context of every layer of ``spec``, but for layers that a quantized run keeps in bf16."""
    lay = spec.layout
    qk, v = attention_width(spec.model)
    sent = sent_to_experts(lay.moe_expert_capacity_factor, lay.moe_pad_expert_input_to_capacity)
    modules = tuple(lay.recompute_modules)
    if lay.recompute is Recompute.selective and not modules:
        modules = ("core_attn",)  # Megatron-Core's default
    return LayerContext(
        model=spec.model,
        gpu=spec.gpu,
        calibration=calibration,
        numerics=numerics_of(spec),
        tp=lay.tp,
        cp=lay.cp,
        ep=lay.ep,
        etp=lay.expert_tp,
        mbs=lay.mbs,
        seq_length=spec.seq_length,
        sequence_parallel=lay.sequence_parallel,
        drops=calibration.dropout or spec.model.hidden_dropout > 0,
        keeps_scores=not _flash_attention(spec, calibration) or lay.attention_backend in UNFUSED_BACKENDS,
        recompute=lay.recompute,
        recompute_modules=modules,
        tp_comm_overlap=lay.tp_comm_overlap,
        cuda_graphs=lay.cuda_graphs,
        cuda_graph_scope=spec.levers.cuda_graph_scope,
        fused_router=spec.levers.moe_router_fusion,
        hides_expert_exchange=spec.levers.expert_comm_overlap,
        fused_cross_entropy=lay.fused_cross_entropy,
        vocabulary=spec.model.padded_vocab_size(lay.tp),
        lora_rank=spec.task.lora_rank,
        adapted=adapted_layers(spec),
        qk=qk / lay.tp,
        v=v / lay.tp,
        expert_capacity=lay.moe_expert_capacity_factor,
        sent_to_experts=sent,
        pads_experts=lay.moe_pad_expert_input_to_capacity,
        sends_once_per_node=spec.dispatcher in _SENDS_ONCE_PER_NODE,
    )


def _flash_attention(spec: Spec, calibration: Calibration) -> bool:
    """Whether attention never writes its scores. NeMo caps Gemma 2's in an attention of its own, which does."""
    return calibration.flash_attention and not spec.model.attn_logit_softcapping


class PlacedLayer(NamedTuple):
    """A decoder layer, as far as its price depends on where it is in the model."""

    kind: LayerKind
    unquantized: bool  # a quantized run keeps it in bf16


@functools.lru_cache(maxsize=65536)
def _layers(shape: LayerShape, start: int, stop: int, first: int, last: int) -> tuple[tuple[PlacedLayer, int], ...]:
    """How many of the layers [start, stop) are alike, where those outside [first, last) are not quantized."""
    kinds = layer_kinds(shape)
    return tuple(Counter(PlacedLayer(kinds[i], not first <= i < last) for i in range(start, stop)).items())


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A spec, and what its memory and its time are computed from."""

    spec: Spec
    calibration: Calibration
    context: LayerContext
    kinds: tuple[LayerKind, ...]  # of every decoder layer, from the first
    chunks: tuple[Chunk, ...]  # in the order in which a micro-batch passes them
    stages: tuple[StageLayers, ...]
    shards: tuple[Shard, ...]  # parameters of one rank of each stage
    parameters: ParameterCount
    layers: tuple[tuple[tuple[PlacedLayer, int], ...], ...]  # of each chunk: how many there are of which
    num_micro_batches: int


def _quantized_layers(spec: Spec) -> tuple[int, int]:
    """The layers from the first of these two to before the second are quantized, where the run is."""
    precision, first, last = spec.precision, 0, spec.model.num_layers
    if precision.first_last_layers_bf16:
        first, last = precision.num_layers_at_start_in_bf16, last - precision.num_layers_at_end_in_bf16
    return first, last


def model_layers(spec: Spec) -> tuple[tuple[PlacedLayer, int], ...]:
    """How many of a model's decoder layers are alike."""
    return _layers(spec.model.shape, 0, spec.model.num_layers, *_quantized_layers(spec))


def workload_of(spec: Spec, calibration: Calibration | None = None, context: LayerContext | None = None) -> Workload:
    """Derive the workload of a legal spec, under ``calibration`` or its GPU's own.

    Args:
        context: of a layout that splits a layer alike, where one is at hand.
    """
    calibration = calibration or calibration_for(spec)
    first, last = _quantized_layers(spec)
    shape, chunks = spec.model.shape, chunks_of(spec) or ()
    stages = layers_of_stages(shape, spec.layout.placement)
    return Workload(
        spec=spec,
        calibration=calibration,
        context=context or layer_context(spec, calibration),
        kinds=layer_kinds(shape),
        chunks=chunks,
        layers=tuple(_layers(shape, chunk.start, chunk.stop, first, last) for chunk in chunks),
        stages=stages,
        shards=tuple(stage_shards(spec)),
        parameters=parameters(spec),
        num_micro_batches=spec.batch.num_micro_batches,
    )
