"""The typed schema of a training run: frozen dataclasses, checked by OmegaConf, that every other folder reads.

Field names are NeMo's and Megatron-Core's where they have one, so that a test can compare each fact with the class that trains.
Units are in the names (``_gib``, ``_tflops``, ``_gb_per_s``); GB is 10^9 and GiB is 2^30 bytes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from omegaconf import MISSING


class Normalization(Enum):
    RMSNorm = "RMSNorm"
    LayerNorm = "LayerNorm"


class Activation(Enum):
    silu = "silu"
    gelu = "gelu"
    squared_relu = "squared_relu"


class PositionEmbedding(Enum):
    rope = "rope"
    learned_absolute = "learned_absolute"
    alibi = "alibi"
    none = "none"


class Recompute(Enum):
    """Which activations are thrown away in the forward pass and computed again in the backward pass."""

    none = "none"
    selective = "selective"
    full = "full"


class Fsdp(Enum):
    """Sharding of parameters over data-parallel ranks. ``megatron`` is Megatron-FSDP (ZeRO-3)."""

    none = "none"
    megatron = "megatron"


class Dispatcher(Enum):
    """How Mixture-of-Experts tokens travel to their experts' ranks (Megatron-Core's moe_token_dispatcher_type)."""

    alltoall = "alltoall"
    allgather = "allgather"
    flex = "flex"


# Made by a call because the field's name for one of them, 1f1b, is not a Python identifier.
Schedule = Enum(
    "Schedule",
    {"auto": "auto", "1f1b": "1f1b", "interleaved": "interleaved", "gpipe": "gpipe", "zero_bubble": "zero_bubble"},
)
"""The order of a pipeline's passes. ``auto`` is what Megatron-Core runs: 1F1B, interleaved where ``vpp`` is above 1."""


class Call(Enum):
    """The function of nemo.collections.llm that a task calls."""

    pretrain = "pretrain"
    finetune = "finetune"


class Adapter(Enum):
    """What is trained beside frozen weights; ``none`` trains the weights themselves."""

    none = "none"
    lora = "lora"


class Mixer(Enum):
    """What in a layer looks at other tokens."""

    attention = "attention"
    mamba = "mamba"
    none = "none"


class FeedForward(Enum):
    dense = "dense"
    experts = "experts"
    none = "none"


class LayerKind(NamedTuple):
    """What a layer is made of. A hybrid's layers have one of the two parts, all others both."""

    mixer: Mixer = Mixer.attention
    feed_forward: FeedForward = FeedForward.dense
    full_keys: bool = True  # False: sliding-window attention

    @property
    def parts(self) -> int:
        """Blocks with a norm before and a residual after them."""
        return (self.mixer is not Mixer.none) + (self.feed_forward is not FeedForward.none)


class LayerShape(NamedTuple):
    """What of a model decides the kind of each of its layers."""

    num_layers: int
    pattern: str
    first_experts: int
    moe_every: int
    window_size: int
    window_every: int


# Megatron-Core's symbols (ssm/mamba_hybrid_layer_allocation.py)
HYBRID_SYMBOLS = {
    "M": LayerKind(Mixer.mamba, FeedForward.none),
    "*": LayerKind(Mixer.attention, FeedForward.none),
    "-": LayerKind(Mixer.none, FeedForward.dense),
    "E": LayerKind(Mixer.none, FeedForward.experts),
}


@functools.lru_cache(maxsize=4096)
def layer_kinds(shape: LayerShape) -> tuple[LayerKind, ...]:
    """The kind of every layer, from the first."""
    if shape.pattern:
        return tuple(HYBRID_SYMBOLS[symbol] for symbol in shape.pattern)

    def kind(i: int) -> LayerKind:
        experts = i >= shape.first_experts and (i + 1) % shape.moe_every == 0
        full_keys = not shape.window_size or (shape.window_every > 1 and (i + 1) % shape.window_every == 0)
        return LayerKind(Mixer.attention, FeedForward.experts if experts else FeedForward.dense, full_keys)

    return tuple(map(kind, range(shape.num_layers)))


@dataclass(frozen=True)
class Model:
    """One architecture. Every field that NeMo's config class has is compared with it in tests/configs."""

    name: str = MISSING
    family: str = MISSING
    nemo_config: str = ""  # class in nemo.collections.llm; empty: known to the planner only
    source: str = ""
    num_layers: int = MISSING
    hidden_size: int = MISSING
    ffn_hidden_size: int = MISSING
    num_attention_heads: int = MISSING
    num_query_groups: int = MISSING
    kv_channels: int = MISSING
    vocab_size: int = MISSING  # of the published tokenizer, before Megatron's padding
    seq_length: int = MISSING  # the sequence length the recipe trains at
    max_position_embeddings: int = MISSING  # the longest position the published model was trained for
    gated_linear_unit: bool = True
    activation_func: Activation = Activation.silu
    normalization: Normalization = Normalization.RMSNorm
    layernorm_epsilon: float = 1e-5
    add_bias_linear: bool = False
    add_qkv_bias: bool = False
    qk_layernorm: bool = False
    share_embeddings_and_output_weights: bool = False
    position_embedding_type: PositionEmbedding = PositionEmbedding.rope
    rotary_base: float = 10000.0
    make_vocab_size_divisible_by: int = 128
    pad_vocab: bool = True  # False: NeMo's class names the vocabulary itself, and does not pad it
    init_method_std: float = 0.02
    # Mixture of experts; num_moe_experts = 0 is a dense model
    num_moe_experts: int = 0
    moe_router_topk: int = 0
    moe_ffn_hidden_size: int = 0
    moe_shared_expert_intermediate_size: int = 0
    num_dense_layers: int = 0  # leading layers without experts (DeepSeek's first_k_dense)
    mtp_num_layers: int = (
        0  # multi-token prediction: layers beside the last stage, each with a loss of its own (arXiv:2412.19437)
    )
    mtp_loss_scaling_factor: float = 0.1
    moe_every: int = 1  # of the layers after those, every n-th holds experts (Llama 4's interleave_moe_layer_step)
    moe_aux_loss_coeff: float = 0.0
    moe_router_num_groups: int = 0
    moe_router_group_topk: int = 0
    # Multi-latent attention; kv_lora_rank = 0 is ordinary attention
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_head_dim: int = 0
    qk_pos_emb_head_dim: int = 0
    v_head_dim: int = 0
    window_size: int = 0  # sliding-window attention: keys seen by a query; 0 is all
    window_every: int = 1  # with a window: every n-th layer sees all keys; 1 is no such layer
    # Hybrids of Mamba-2 and attention: one symbol a layer, M (Mamba), * (attention), - (dense feed-forward), E (experts); empty: none
    hybrid_override_pattern: str = ""
    mamba_num_heads: int = 0
    mamba_head_dim: int = 64
    mamba_state_dim: int = 128
    mamba_num_groups: int = 8
    moe_latent_size: int = (
        0  # experts work, and tokens travel, at this width; 0 is the hidden size (Nemotron 3's LatentMoE)
    )

    @property
    def is_moe(self) -> bool:
        return self.num_moe_experts > 0

    @property
    def is_mla(self) -> bool:
        return self.kv_lora_rank > 0

    @property
    def tied(self) -> bool:
        return self.share_embeddings_and_output_weights

    @property
    def shape(self) -> LayerShape:
        first_experts = self.num_dense_layers if self.is_moe else self.num_layers
        return LayerShape(
            self.num_layers,
            self.hybrid_override_pattern,
            first_experts,
            self.moe_every,
            self.window_size,
            self.window_every,
        )

    def layer_is_moe(self, layer: int) -> bool:
        """Whether the 0-based decoder layer holds experts."""
        return layer_kinds(self.shape)[layer].feed_forward is FeedForward.experts

    @property
    def mtp_kind(self) -> LayerKind:
        """A layer that predicts a further token: attention, and the feed-forward of the model's last."""
        return LayerKind(Mixer.attention, layer_kinds(self.shape)[-1].feed_forward)

    @property
    def has_dense_layers(self) -> bool:
        if self.hybrid_override_pattern:
            return "-" in self.hybrid_override_pattern
        return not self.is_moe or self.num_dense_layers > 0 or self.moe_every > 1

    @property
    def mamba_width(self) -> int:
        """Channels of a Mamba layer's inner state, Megatron-Core's d_inner."""
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def mamba_projection(self) -> int:
        """Outputs of a Mamba layer's first projection: gate and x, B and C of every group, dt of every head."""
        return 2 * self.mamba_width + 2 * self.mamba_num_groups * self.mamba_state_dim + self.mamba_num_heads

    def padded_vocab_size(self, tp: int) -> int:
        """Vocabulary rows after Megatron's padding to ``make_vocab_size_divisible_by * tp`` (NeMo: _vocab_size_with_padding)."""
        if not self.pad_vocab:
            return self.vocab_size
        multiple = self.make_vocab_size_divisible_by * tp
        return -(-self.vocab_size // multiple) * multiple


@dataclass(frozen=True)
class Calibration:
    """The planner's few fitted constants for one GPU and software generation; docs/planner.md tells the fit and its spread.

    Efficiencies are fractions of the datasheet's dense peak or bandwidth; ``_us`` are microseconds.
    """

    name: str = MISSING
    gemm_efficiency: float = 0.75  # large bf16 GEMM, power throttling included
    fp8_gemm_efficiency: float = 0.60
    mxfp8_gemm_efficiency: float = 0.55  # block-scaled fp8, its casts' second direction included
    fp4_gemm_efficiency: float = 0.45
    attention_efficiency: float = 0.50  # fused attention, fraction of the bf16 peak
    flash_attention: bool = True  # False: scores are written to memory, as before FlashAttention
    dropout: bool = False  # GPT-era recipes: masks are written, kept and read
    mla_passes: float = (
        5.0  # touches of MLA's queries, keys and values between projections and attention: 2.2 with fused kernels
    )
    separate_norms: bool = (
        False  # True: each norm is a module of its own; Transformer Engine's are a part of the linear layer they feed
    )
    logits_bytes: float = 0.0  # of one logit at the loss, where a stack has its own; 0: as the layout's loss keeps them
    memory_efficiency: float = 0.80  # streaming kernels, fraction of HBM bandwidth
    elementwise_passes: float = 1.5  # bytes that elementwise kernels move over the fused minimum
    gemm_tail: float = 0.5  # share of the idle multiprocessors in a GEMM's last wave of tiles that costs time
    gemm_bytes_exposed: float = 0.5  # share of a GEMM's operand traffic that its arithmetic does not hide
    kernel_us: float = 3.0  # fixed cost of a kernel on the GPU: ramp, tail, gap
    launch_us: float = 5.0  # CPU time to launch a kernel: the floor of small layers; 0 under CUDA graphs
    layer_host_us: float = 0.0  # CPU time of a layer's pass beside its launches: the Python that walks through it
    moe_host_us: float = (
        500.0  # CPU time of a dropless expert layer's pass: the host waits for token counts; 0 under CUDA graphs
    )
    nvlink_efficiency: float = 0.70
    network_efficiency: float = 0.70
    collective_us: float = 15.0
    tp_overlap: float = 0.0  # share of tensor-parallel communication hidden under GEMMs
    dp_overlap: float = 0.8  # share of a micro-batch's compute that data-parallel communication may hide under; with FSDP, of it that hides
    expert_overlap: float = 0.0  # share of expert all-to-all hidden
    expert_imbalance: float = 1.0  # busiest rank's tokens over the mean
    jitter_per_doubling: float = 0.0  # slowdown per doubling of nodes: stragglers, network contention
    step_overhead_s: float = 0.02  # once a step: data, logging, optimizer launch, host synchronisation
    overlapped: bool = True  # gradient reduction under the backward pass, parameter gather under the forward
    extra_memory_gib: float = 0.0  # taken outside what the planner counts: communication buckets, older contexts
    spread: float = 0.15  # standard deviation of ln(measured / predicted) by cross-validation
    source: str = ""


@dataclass(frozen=True)
class Gpu:
    """One accelerator: datasheet facts, each with its source in the YAML file."""

    name: str = MISSING
    device_name: str = ""  # as nvidia-smi and torch.cuda.get_device_name call it
    architecture: str = MISSING
    compute_capability: int = MISSING  # 80, 90, 100, 103
    source: str = ""
    tf32_tflops: float = MISSING  # dense peaks
    bf16_tflops: float = MISSING
    fp8_tflops: float = 0.0  # 0: the part has none
    fp4_tflops: float = 0.0
    memory_gb: float = MISSING  # marketed capacity, 10^9 bytes
    multiprocessors: int = MISSING
    usable_memory_gib: float = MISSING  # what CUDA reports as total, GiB
    memory_gb_per_s: float = MISSING
    nvlink_gb_per_s: float = MISSING  # per direction, per GPU
    nvlink_domain: int = MISSING  # GPUs that reach each other over NVLink
    nic_gb_per_s: float = MISSING  # per direction, per GPU, between NVLink domains
    gpus_per_node: int = 8
    host_memory_gib_per_gpu: float = 256.0
    host_link_gb_per_s: float = MISSING  # to host memory, one direction


@dataclass(frozen=True)
class Precision:
    """A mixed-precision recipe: the dtype of GEMM inputs, and what fp8 keeps beside the weights."""

    name: str = MISSING
    gemm: str = "bf16"  # fp32, bf16, fp8, fp4
    fp8_recipe: str = ""  # Transformer Engine recipe: delayed, tensorwise, blockwise, mxfp8
    fp8_format: str = ""  # hybrid, e4m3
    fp8_param_gather: bool = False
    first_last_layers_bf16: bool = False
    num_layers_at_start_in_bf16: int = 0
    num_layers_at_end_in_bf16: int = 0
    grad_reduce_in_fp32: bool = True
    min_compute_capability: int = 80
    max_compute_capability: int = 0  # 0: no upper limit
    source: str = ""


@dataclass(frozen=True)
class Layout:
    """How a model is spread over GPUs, and the batch that feeds it. Sizes of 1 switch a dimension off."""

    tp: int = 1
    pp: int = 1
    vpp: int = 1  # model chunks per pipeline rank
    cp: int = 1
    ep: int = 1
    etp: int = 0  # expert tensor parallel size; 0 follows tp, as Megatron-Core does
    sp: bool | None = None  # sequence parallelism; unset follows tp > 1
    mbs: int = 1
    gbs: int = 512
    seq_length: int = 0  # 0: the model's own
    recompute: Recompute = Recompute.none
    recompute_modules: list[str] = field(default_factory=list)  # with selective; empty is [core_attn]
    recompute_method: str = ""  # with full: uniform or block
    recompute_num_layers: int = 0  # with full: layers per uniform block, or layers recomputed per stage
    fsdp: Fsdp = Fsdp.none
    distributed_optimizer: bool = True
    overlap_grad_reduce: bool = True
    overlap_param_gather: bool = True
    tp_comm_overlap: bool = False
    dispatcher: Dispatcher = Dispatcher.alltoall
    moe_expert_capacity_factor: float = (
        0.0  # an expert takes this many times its even share of tokens, and drops the rest; 0 drops none
    )
    moe_pad_expert_input_to_capacity: bool = (
        False  # each expert's share is filled up: sizes are known without asking the GPU
    )
    num_layers_in_first_pipeline_stage: int = 0
    num_layers_in_last_pipeline_stage: int = 0
    account_for_embedding: bool = False
    account_for_loss: bool = False
    split_unevenly: bool = (
        False  # where the layers do not divide: count embedding and loss too, else shorten the last stage
    )
    schedule: Schedule = Schedule.auto
    flexible_pipeline: bool = False  # layers spread as evenly as they go (pipeline_model_parallel_layout), ends lighter
    cpu_offload_layers: int = 0
    optimizer_cpu_offload: bool = False
    cuda_graphs: bool = False
    fused_cross_entropy: bool = (
        True  # Transformer Engine's loss; False: Megatron-Core's, which writes each logit several times
    )
    attention_backend: str = "auto"  # auto, flash, fused, unfused, local
    source: str = ""

    @property
    def sequence_parallel(self) -> bool:
        return self.tp > 1 if self.sp is None else self.sp

    @property
    def expert_tp(self) -> int:
        return self.etp or self.tp


@dataclass(frozen=True)
class Batch:
    """What a layout and a GPU count make of the batch."""

    micro: int
    global_: int
    seq_length: int
    dp: int
    num_micro_batches: int

    @property
    def tokens(self) -> int:
        return self.global_ * self.seq_length


@dataclass(frozen=True)
class Optimizer:
    """Optimizer and schedule. Each family has its own file with its own source; there is no shared default."""

    name: str = MISSING
    source: str = ""
    optimizer: str = "adam"
    lr: float = MISSING
    min_lr: float = MISSING
    weight_decay: float = MISSING
    adam_beta1: float = MISSING
    adam_beta2: float = MISSING
    adam_eps: float = MISSING
    clip_grad: float = 1.0
    warmup_steps: int = MISSING
    decay_steps: int = 0  # 0: the run's max_steps at its first launch
    schedule: str = "cosine"  # the only one that is built
    precision_aware: bool = False  # Adam moments and gradients in bf16 (Megatron-Core's precision-aware optimizer)


@dataclass(frozen=True)
class Data:
    """Where tokens come from: Megatron .bin/.idx prefixes, or mock."""

    name: str = MISSING
    kind: str = "mock"  # mock, indexed
    paths: list[str] = field(default_factory=list)
    tokenizer: str = ""  # a folder or name that Hugging Face tokenizers can load; empty: null tokenizer
    split: str = "900,50,50"
    num_workers: int = 2


@dataclass(frozen=True)
class Cluster:
    """Where a run goes: an executor and what the site asks of it."""

    name: str = MISSING
    executor: str = MISSING  # local, slurm, docker
    accelerator: str = "auto"  # gpu; cpu: ranks of a toy over Gloo; auto: cpu for a toy where this machine has no GPU
    gpu: str = ""  # what its nodes have; the default of gpu=
    gpus_per_node: int = 0  # ranks on a node; 0: as many as machines with this GPU have
    account: str = ""
    partition: str = ""
    time: str = "04:00:00"
    gres: str = ""  # empty asks by --gpus-per-node
    sbatch: dict[str, str] = field(
        default_factory=dict
    )  # any other option of sbatch, as {qos: high, reservation: tuesday}
    array: str = ""  # several tasks of one run, one after the other: 0-9%1
    exclusive: bool = True
    requeue: bool = False  # SLURM puts the job back in the queue when a node dies
    retries: int = 0  # how often the job puts itself back after a failure or an early stop
    grace_minutes: float = 10.0  # before the time limit: save, stop, and go back in the queue
    container_image: str = ""
    container_mounts: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)  # shell lines before the ranks start, as module load
    env: dict[str, str] = field(default_factory=dict)
    secrets_file: str = ""  # KEY=value lines that the job reads itself: never copied, never printed
    job_dir: str = ""  # experiments' folder, seen by login and compute nodes; empty: NeMo-Run's own
    source: str = ""


@dataclass(frozen=True)
class Task:
    """What is trained of the model, and by which of NeMo's functions."""

    name: str = "pretrain"
    call: Call = Call.pretrain
    adapter: Adapter = Adapter.none
    lora_rank: int = 0  # inner width of a LoRA adapter; 0 without one
    source: str = ""


@dataclass(frozen=True)
class Run:
    """What is kept of a run and for how long it goes."""

    dir: str = "runs"
    max_steps: int = 100
    seed: int = 1234  # of the weights and of the data's order
    val_check_interval: int = 0  # 0: no validation
    limit_val_batches: int = 4
    log_every_n_steps: int = 1
    checkpoint_every_n_steps: int = 500
    checkpoint_every_minutes: int = 30
    keep_checkpoints: int = 3
    async_save: bool = True
    resume: bool = True
    extend_schedule: bool = False  # let a longer max_steps stretch a schedule that a checkpoint has already fixed
    wandb_project: str = ""  # log to Weights & Biases too; WANDB_MODE=offline keeps it on disk
    mlflow_experiment: str = ""  # log to MLflow too: into mlruns beside the runs, or where MLFLOW_TRACKING_URI says


@dataclass(frozen=True)
class Spec:
    """One run, complete: what flows from configs to planner, recipes and launch."""

    name: str = MISSING
    gpus: int = 8
    software: str = ""  # software generation of the planner's constants; empty: the GPU's newest
    model: Model = field(default_factory=Model)
    gpu: Gpu = field(default_factory=Gpu)
    precision: Precision = field(default_factory=Precision)
    layout: Layout = field(default_factory=Layout)
    optim: Optimizer = field(default_factory=Optimizer)
    data: Data = field(default_factory=Data)
    task: Task = field(default_factory=Task)
    cluster: Cluster = field(default_factory=Cluster)
    run: Run = field(default_factory=Run)

    @property
    def seq_length(self) -> int:
        return self.layout.seq_length or self.model.seq_length

    @property
    def gpus_per_node(self) -> int:
        """Ranks on a node: what the cluster's file says, else what machines with this GPU have."""
        return self.cluster.gpus_per_node or self.gpu.gpus_per_node

    @property
    def num_nodes(self) -> int:
        return max(1, -(-self.gpus // self.gpus_per_node))

    @property
    def dp(self) -> int:
        """Data-parallel size of the dense part, context parallelism left out; 0 when the GPUs do not divide."""
        ranks = self.layout.tp * self.layout.pp * self.layout.cp
        return self.gpus // ranks if self.gpus % ranks == 0 else 0

    @property
    def expert_dp(self) -> int:
        """Ranks that hold the same experts."""
        return max(1, self.gpus // (self.layout.pp * self.layout.ep * self.layout.expert_tp))

    @property
    def batch(self) -> Batch:
        lay, dp = self.layout, max(self.dp, 1)
        return Batch(lay.mbs, lay.gbs, self.seq_length, dp, max(1, lay.gbs // (lay.mbs * dp)))
