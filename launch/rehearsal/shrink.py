"""Shrink a recipe to a toy that keeps its structure: every dimension that was split stays split, every ratio that could break stays."""

from __future__ import annotations

from dataclasses import replace

from slipway import configs
from slipway.configs import Spec
from slipway.planner.layout import on_one_rank

MAX_RANKS = 8
_HEAD = 16  # channels of a toy head
_MICRO_BATCHES = 4


def _cap(size: int, most: int = 2) -> int:
    return min(size, most)


def shrink(spec: Spec, max_ranks: int = MAX_RANKS) -> Spec:
    """A toy of ``spec`` on as few CPU ranks as keep every parallel dimension that was above 1 at 2.

    Data parallelism is kept at 2 where the ranks allow it or experts need it. Precision becomes fp32, so that parity
    can be exact; the learning rate is made large, so that five steps move the loss.
    """
    lay = spec.layout
    tp, pp, vpp, cp = _cap(lay.tp), _cap(lay.pp), _cap(lay.vpp), _cap(lay.cp)
    ep = _cap(lay.ep)
    etp = 0 if not lay.etp else (_cap(lay.etp) if lay.etp > 1 else 1)
    dp = 2 if spec.dp > 1 and tp * pp * cp * 2 <= max_ranks else 1
    expert_tp = etp or tp
    while (tp * cp * dp) % (ep * expert_tp):  # the expert group is carved out of tensor x context x data ranks
        dp *= 2
    model, layers, first, last = _shrink_model(spec, tp, pp, vpp)
    micro = _cap(lay.mbs)
    layout = replace(
        lay,
        tp=tp,
        pp=pp,
        vpp=vpp,
        cp=cp,
        ep=ep,
        etp=etp,
        mbs=micro,
        gbs=micro * dp * _MICRO_BATCHES,
        seq_length=64,
        num_layers_in_first_pipeline_stage=first,
        num_layers_in_last_pipeline_stage=last,
        recompute_num_layers=min(lay.recompute_num_layers, 1),
        tp_comm_overlap=False,
        cuda_graphs=False,
        cpu_offload_layers=0,
        optimizer_cpu_offload=False,
        moe_expert_capacity_factor=0.0,  # which tokens are dropped depends on the split
        moe_pad_expert_input_to_capacity=False,
        dispatcher=configs.Dispatcher.alltoall if lay.dispatcher is configs.Dispatcher.flex else lay.dispatcher,
    )
    optim = replace(spec.optim, lr=1e-2, min_lr=1e-3, warmup_steps=1, decay_steps=100, precision_aware=False)
    return replace(
        spec,
        gpus=tp * pp * cp * dp,
        model=replace(model, num_layers=layers),
        precision=configs.precision("fp32"),
        layout=layout,
        optim=optim,
        data=configs.Data(name="mock"),
    )


def _shrink_model(spec: Spec, tp: int, pp: int, vpp: int) -> tuple[configs.Model, int, int, int]:
    """The toy model, its layer count, and the sizes of its first and last stage (0: even)."""
    m, lay = spec.model, spec.layout
    heads = 4
    groups = heads if m.num_query_groups == m.num_attention_heads else 2
    chunks = pp * vpp
    extra = int(lay.account_for_embedding) + int(lay.account_for_loss)
    layers = chunks * (2 if extra else max(1, 4 // chunks)) - extra
    first = vpp if lay.num_layers_in_first_pipeline_stage else 0
    last = vpp if lay.num_layers_in_last_pipeline_stage else 0
    if first or last:
        middle = pp - bool(first) - bool(last)
        layers = first + last + 2 * vpp * middle
    toy = replace(
        m,
        hidden_size=heads * _HEAD,
        ffn_hidden_size=128,
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=_HEAD,
        vocab_size=512,
        make_vocab_size_divisible_by=128,  # 512 is a multiple of 128 x 2: the padded size does not depend on TP
        max_position_embeddings=256
        if m.position_embedding_type is configs.schema.PositionEmbedding.learned_absolute
        else 4096,
        init_method_std=0.02,
    )
    if m.is_moe:
        toy = replace(
            toy,
            num_moe_experts=4,
            moe_router_topk=_cap(m.moe_router_topk),
            moe_ffn_hidden_size=64,
            moe_shared_expert_intermediate_size=64 if m.moe_shared_expert_intermediate_size else 0,
            num_dense_layers=_cap(m.num_dense_layers, 1),
            moe_router_num_groups=2 if m.moe_router_num_groups else 0,
            moe_router_group_topk=1 if m.moe_router_group_topk else 0,
        )
    if m.is_mla:
        toy = replace(
            toy,
            q_lora_rank=32 if m.q_lora_rank else 0,
            kv_lora_rank=16,
            qk_head_dim=_HEAD,
            qk_pos_emb_head_dim=8,
            v_head_dim=_HEAD,
        )
    return toy, layers, first, last


def single_process(toy: Spec) -> Spec:
    """The same toy, whole, in one process: what every layout must agree with."""
    return replace(toy, gpus=1, layout=on_one_rank(toy.layout))
