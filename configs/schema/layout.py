"""How a model is spread over GPUs, and the batch that feeds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from slipway.configs.schema.legal import Choice, Count, NonNegative, Size


class Recompute(Choice):
    """Which activations the forward pass discards and the backward pass computes again."""

    none = "none"
    selective = "selective"
    full = "full"


class RecomputeMethod(Choice):
    """How full recomputation picks layers; the empty word is Megatron-Core's default, uniform."""

    default = ""
    uniform = "uniform"
    block = "block"


class Fsdp(Choice):
    """Sharding of parameters over data-parallel ranks; ``megatron`` is Megatron-FSDP (ZeRO-3)."""

    none = "none"
    megatron = "megatron"


class Dispatcher(Choice):
    """How tokens travel to the ranks of their experts (Megatron-Core's ``moe_token_dispatcher_type``).

    ``flex`` is DeepEP, ``hybridep`` NVIDIA's successor of it. ``auto`` is DeepEP where it runs, else ``alltoall``.
    """

    auto = "auto"
    alltoall = "alltoall"
    allgather = "allgather"
    flex = "flex"
    hybridep = "hybridep"


class Schedule(Choice):
    """The order of a pipeline's passes; ``auto`` is Megatron-Core's: 1F1B, interleaved where ``vpp`` is above 1."""

    auto = "auto"
    one_f_one_b = "1f1b"
    interleaved = "interleaved"
    gpipe = "gpipe"
    zero_bubble = "zero_bubble"


class AttentionBackend(Choice):
    """The implementation of attention (Megatron-Core's ``attention_backend``)."""

    auto = "auto"
    flash = "flash"
    fused = "fused"
    unfused = "unfused"
    local = "local"


class Placement(NamedTuple):
    """The fields of a layout that decide the pipeline stage of each layer."""

    pp: int
    vpp: int
    num_layers_in_first_pipeline_stage: int
    num_layers_in_last_pipeline_stage: int
    account_for_embedding: bool
    account_for_loss: bool
    pipeline_layout: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Parallel sizes (1 switches a dimension off), batch sizes, and what is traded for memory."""

    tp: Size = 1
    """Tensor-parallel size."""

    pp: Size = 1
    """Pipeline-parallel size: stages."""

    vpp: Size = 1
    """Virtual pipeline size: model chunks per stage."""

    cp: Size = 1
    """Context-parallel size."""

    ep: Size = 1
    """Expert-parallel size."""

    etp: Count = 0
    """Tensor-parallel size of the experts; 0: equal to ``tp``, as in Megatron-Core."""

    sp: bool | None = None
    """Sequence parallelism; unset: on where ``tp`` is above 1."""

    mbs: Size = 1
    """Micro-batch size: sequences per data-parallel rank in one forward pass."""

    gbs: Size = 512
    """Global batch size: sequences per optimizer step."""

    seq_length: Count = 0
    """Tokens per sequence; 0: the model's own."""

    recompute: Recompute = Recompute.none
    """Which activations are recomputed."""

    recompute_modules: list[str] = field(default_factory=list)
    """With selective recomputation: the modules; empty: core_attn."""

    recompute_method: RecomputeMethod = RecomputeMethod.default
    """With full recomputation: ``uniform`` blocks of layers, or a ``block`` of layers per stage."""

    recompute_num_layers: Count = 0
    """With full recomputation: layers per uniform block, or layers recomputed per stage; 0: 1 per block."""

    fsdp: Fsdp = Fsdp.none
    """Sharding of parameters over data-parallel ranks; ``true`` stands for ``megatron``."""

    distributed_optimizer: bool = True
    """Whether optimizer states are sharded over data-parallel ranks (ZeRO-1)."""

    overlap_grad_reduce: bool = True
    """Whether gradients are reduced during the backward pass."""

    overlap_param_gather: bool = True
    """Whether parameters are gathered during the forward pass."""

    tp_comm_overlap: bool = False
    """Whether tensor-parallel communication overlaps with matrix multiplications."""

    dispatcher: Dispatcher = Dispatcher.alltoall
    """How tokens travel to the ranks of their experts."""

    moe_expert_capacity_factor: NonNegative = 0.0
    """Tokens an expert accepts, as a multiple of its even share; it drops the rest. 0: no token is dropped."""

    moe_pad_expert_input_to_capacity: bool = False
    """Whether each expert's input is padded to its capacity, so that its size is known without asking the GPU."""

    num_layers_in_first_pipeline_stage: Count = 0
    """Layers of the first stage; 0: as the others."""

    num_layers_in_last_pipeline_stage: Count = 0
    """Layers of the last stage; 0: as the others."""

    account_for_embedding: bool = False
    """Whether the embedding counts as a layer when layers are divided over stages."""

    account_for_loss: bool = False
    """Whether the output layer and loss count as a layer when layers are divided over stages."""

    split_unevenly: bool = False
    """Where the layers do not divide over the stages: count embedding and loss too, else shorten the last stage."""

    schedule: Schedule = Schedule.auto
    """Order of the pipeline's passes; ``gpipe`` and ``zero_bubble`` can be planned, not trained."""

    pipeline_layout: str = ""
    """The layers of each model chunk in Megatron-Core's notation, such as ``Et|(tt|)*30mL``; empty: equal stages."""

    cpu_offload_layers: Count = 0
    """Layers whose activations are moved to host memory."""

    optimizer_cpu_offload: bool = False
    """Whether optimizer states and the optimizer step are moved to the host."""

    cuda_graphs: bool = False
    """Whether layers are captured as CUDA graphs."""

    fused_cross_entropy: bool = True
    """True: Transformer Engine's loss. False: Megatron-Core's, which writes each logit several times."""

    attention_backend: AttentionBackend = AttentionBackend.auto
    """The implementation of attention."""

    source: str = ""
    """Where the layout comes from."""

    @property
    def sequence_parallel(self) -> bool:
        """Whether sequence parallelism is on."""
        return self.tp > 1 if self.sp is None else self.sp

    @property
    def expert_tp(self) -> int:
        """Tensor-parallel size of the experts."""
        return self.etp or self.tp

    @property
    def placement(self) -> Placement:
        """What decides the pipeline stage of each layer."""
        return Placement(*(getattr(self, name) for name in Placement._fields))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The batch that a layout and a number of GPUs give. Sizes are in sequences."""

    micro: int
    """Sequences per data-parallel rank in one forward pass."""

    global_: int
    """Sequences per optimizer step."""

    seq_length: int
    """Tokens per sequence."""

    dp: int
    """Data-parallel ranks."""

    num_micro_batches: int
    """Micro-batches per optimizer step on each data-parallel rank."""

    @property
    def tokens(self) -> int:
        """Tokens per optimizer step."""
        return self.global_ * self.seq_length
