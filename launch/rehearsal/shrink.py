"""Shrink a recipe to a toy that keeps its structure: what is split stays split, at the smallest size."""

from __future__ import annotations

import math
from dataclasses import replace

from slipway import configs
from slipway.configs import Layout, Levers, Model, Spec
from slipway.configs.schema import LoadBalancing, LrSchedule
from slipway.configs.schema.pipeline_layout import DECODER, chunks_of_text, text_of_sizes
from slipway.planner.layout import on_one_rank

MAX_RANKS = 8
MOST = 2  # of a toy's parallel sizes: the least that is split
MICRO_BATCHES = 4  # enough to fill and drain a pipeline of two stages of two chunks
SEQUENCE_LENGTH = 64
HEADS, HEAD_CHANNELS = 4, 16
ADAPTER_RANK = 4
WINDOW = 16  # a quarter of the sequence: most queries lose keys to it
VOCABULARY, VOCABULARY_DIVISOR = 512, 128  # a multiple of 128 x 2, so that the padded size does not depend on TP
# A large learning rate, without a long warm-up, moves the loss within five steps
LEARNING_RATE, MIN_LEARNING_RATE, WARMUP_STEPS, DECAY_STEPS = 1e-2, 1e-3, 1, 100
# Adam's update is the sign of a gradient that is small beside the others. Where that gradient is rounding alone, two
# layouts that train alike would differ by whole updates; with this epsilon, rounding stays rounding.
ADAM_EPS = 1e-5


def _at_most(size: int, most: int = MOST) -> int:
    return min(size, most)


def shrink(spec: Spec, max_ranks: int = MAX_RANKS) -> Spec:
    """A toy of ``spec`` on the fewest CPU ranks that keep every parallel size above 1 at 2.

    Data parallelism is kept at 2 where ``max_ranks`` allows it or experts need it. The precision becomes fp32, in which
    a layout and one process agree to rounding.
    """
    layout = _shrunk_layout(spec, max_ranks)
    model, first, last = _shrunk_model(spec, layout)
    optim = replace(
        spec.optim,
        lr=LEARNING_RATE,
        min_lr=MIN_LEARNING_RATE,
        adam_eps=ADAM_EPS,
        warmup_steps=WARMUP_STEPS,
        warmup_tokens="",
        decay_steps=DECAY_STEPS,
        decay_tokens="",
        schedule=LrSchedule.cosine,
        stages=[],
        batch_ramp=[],
        changes=[],
        precision_aware=False,
    )
    return replace(
        spec,
        gpus=_ranks(layout),
        model=model,
        precision=configs.precision("fp32"),
        layout=replace(
            layout,
            num_layers_in_first_pipeline_stage=first,
            num_layers_in_last_pipeline_stage=last,
            pipeline_layout=_shrunk_pipeline(spec, layout) if spec.layout.pipeline_layout else "",
        ),
        levers=_shrunk_levers(spec, layout),
        optim=optim,
        data=configs.Data(name="mock", packed=spec.data.packed),
        task=replace(spec.task, lora_rank=_at_most(spec.task.lora_rank, ADAPTER_RANK)),
        run=replace(spec.run, base=""),
    )


def _shrunk_layout(spec: Spec, max_ranks: int) -> Layout:
    layout = spec.layout
    tp, pp, cp, ep = (_at_most(size) for size in (layout.tp, layout.pp, layout.cp, layout.ep))
    etp = _at_most(layout.etp)
    data_parallel = 2 if spec.dp > 1 and tp * pp * cp * 2 <= max_ranks else 1
    while (tp * cp * data_parallel) % (ep * (etp or tp)):  # expert groups divide tensor x context x data ranks
        data_parallel *= 2
    micro_batch = _at_most(layout.mbs)
    return replace(
        layout,
        tp=tp,
        pp=pp,
        vpp=_at_most(layout.vpp),
        cp=cp,
        ep=ep,
        etp=etp,
        mbs=micro_batch,
        gbs=micro_batch * data_parallel * MICRO_BATCHES,
        seq_length=SEQUENCE_LENGTH,
        recompute_num_layers=_at_most(layout.recompute_num_layers, 1),
        tp_comm_overlap=False,
        cuda_graphs=False,
        cpu_offload_layers=0,
        optimizer_cpu_offload=False,
        moe_expert_capacity_factor=0.0,  # which tokens are dropped depends on the layout
        moe_pad_expert_input_to_capacity=False,
        dispatcher=configs.Dispatcher.alltoall if spec.dispatcher is configs.Dispatcher.flex else spec.dispatcher,
    )


def _shrunk_levers(spec: Spec, toy: Layout) -> Levers:
    """The levers that CPU ranks have. A toy has few data-parallel ranks: no more instances than divide them."""
    ranks = replace(spec, layout=toy, gpus=_ranks(toy))
    instances = math.gcd(spec.levers.optimizer_instances, ranks.dp * toy.cp, ranks.expert_dp)
    return replace(spec.levers, optimizer_instances=instances, moe_router_fusion=False)


def _ranks(toy: Layout) -> int:
    return toy.tp * toy.pp * toy.cp * (toy.gbs // (toy.mbs * MICRO_BATCHES))


def _query_groups(model: Model) -> int:
    """Under a window, tensor and context ranks split the groups: two of each, of which every rank must have one."""
    if model.num_query_groups == model.num_attention_heads:
        return HEADS
    return 4 if model.window_size and model.num_query_groups >= 4 else 2


def _shrunk_model(spec: Spec, toy: Layout) -> tuple[Model, int, int]:
    """The toy model, and the layers of its first and of its last stage (0: as many as the others)."""
    model = spec.model
    layers, first, last = _shrunk_stages(spec.layout, toy)
    if model.window_every > layers and not (first or last or spec.layout.pipeline_layout):
        layers = math.lcm(model.window_every, toy.pp * toy.vpp)  # one layer that sees every key
    learned = model.position_embedding_type is configs.schema.PositionEmbedding.learned_absolute
    shrunk = replace(
        model,
        num_layers=layers,
        hidden_size=HEADS * HEAD_CHANNELS,
        ffn_hidden_size=128,
        num_attention_heads=HEADS,
        num_query_groups=_query_groups(model),
        kv_channels=HEAD_CHANNELS,
        vocab_size=VOCABULARY,
        make_vocab_size_divisible_by=VOCABULARY_DIVISOR,
        max_position_embeddings=256 if learned else 4096,
        init_method_std=0.02,
        window_size=WINDOW if model.window_size else 0,
        hidden_dropout=0.0,  # which elements are dropped depends on the layout
        attention_dropout=0.0,
    )
    return _shrunk_latent_attention(_shrunk_experts(shrunk)), first, last


def _shrunk_stages(layout: Layout, toy: Layout) -> tuple[int, int, int]:
    """The layers of the toy, of its first stage and of its last (0: as many as the others)."""
    if layout.pipeline_layout:
        return sum(_chunk_sizes(layout, toy)), 0, 0
    chunks = toy.pp * toy.vpp
    extra = int(layout.account_for_embedding) + int(layout.account_for_loss)
    layers = chunks * (2 if extra else max(1, 4 // chunks)) - extra
    first = toy.vpp if layout.num_layers_in_first_pipeline_stage else 0
    last = toy.vpp if layout.num_layers_in_last_pipeline_stage else 0
    if first or last:
        stages_between = toy.pp - bool(first) - bool(last)
        layers = first + last + 2 * toy.vpp * stages_between
    return layers, first, last


def _chunk_sizes(layout: Layout, toy: Layout) -> list[int]:
    """Layers of the toy's chunks: one beside the embedding, two elsewhere, one beside the loss where there are any."""
    *_, end = chunks_of_text(layout.pipeline_layout)
    return [1] + [2] * (toy.pp * toy.vpp - 2) + [int(DECODER in end)]


def _shrunk_pipeline(spec: Spec, toy: Layout) -> str:
    return text_of_sizes(_chunk_sizes(spec.layout, toy), spec.model.mtp_num_layers)


def _shrunk_experts(model: Model) -> Model:
    if not model.is_moe:
        return model
    balancing = model.moe_router_load_balancing_type
    if balancing is LoadBalancing.global_aux_loss:  # what it has counted after a micro-batch depends on the layout
        balancing = LoadBalancing.aux_loss
    return replace(
        model,
        moe_router_load_balancing_type=balancing,
        num_moe_experts=4,
        moe_router_topk=_at_most(model.moe_router_topk),
        moe_ffn_hidden_size=64,
        moe_shared_expert_intermediate_size=64 if model.moe_shared_expert_intermediate_size else 0,
        num_dense_layers=_at_most(model.num_dense_layers, 1),
        moe_router_num_groups=2 if model.moe_router_num_groups else 0,
        moe_router_group_topk=1 if model.moe_router_group_topk else 0,
    )


def _shrunk_latent_attention(model: Model) -> Model:
    if not model.is_mla:
        return model
    return replace(
        model,
        q_lora_rank=32 if model.q_lora_rank else 0,
        kv_lora_rank=16,
        qk_head_dim=HEAD_CHANNELS,
        qk_pos_emb_head_dim=8,
        v_head_dim=HEAD_CHANNELS,
    )


def single_process(toy: Spec) -> Spec:
    """The same toy in one process, with which every layout must agree."""
    levers = replace(toy.levers, optimizer_instances=1, wgrad_deferral_limit=0)
    return replace(toy, gpus=1, layout=on_one_rank(toy.layout), levers=levers)
