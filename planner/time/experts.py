"""What a Mixture-of-Experts block does: routing, the dispatch to the experts' ranks and back, the experts themselves.

Symbols:
    t       tokens of a micro-batch on one context rank
    h       width at which tokens travel and experts work
    local   tokens that this rank routes
    routed  copies of them that travel
    e       bytes of an activation's element
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from slipway.configs import Model
from slipway.planner.numerics import FP32_BYTES
from slipway.planner.time.links import local_ranks
from slipway.planner.time.mlp import activation, feed_forward
from slipway.planner.time.operations import (
    AllToAlls,
    ExpertBias,
    Gathers,
    Group,
    Linear,
    Module,
    Operation,
    Stream,
    Term,
)
from slipway.planner.workload import LayerContext

# Passes over the router's logits: softmax, selection, the counting of tokens, the load-balancing loss; in eight
# kernels. Fused, it is one kernel each for the selection, for the scores of the loss, and for the loss.
_ROUTER_PASSES, _ROUTER_KERNELS = 3, 8
_FUSED_ROUTER_PASSES, _FUSED_ROUTER_KERNELS = 2, 3
# Share of the exchange that hides under another micro-batch's compute. Assumed: DeepSeek-V3 reports that both are about
# as long as each other and that the exchange is hidden (arXiv:2412.19437, section 3.2.1); its first and last
# micro-batch have no other to hide under.
_OVERLAPPED_EXCHANGE = 0.9
# Reads and writes of the copies. The all-to-all dispatcher orders them by rank before they travel and by expert after,
# and back, of which the exchange does a part. The flex dispatcher's kernels place the copies as they move them.
_ORDERING_PASSES = {"alltoall": 6, "flex": 2}
_ORDERING_KERNELS = 6
_EXCHANGES = 2  # there and back
_EXCHANGE_KERNELS = 6


def experts(context: LayerContext) -> Iterator[Operation | Module]:
    m, e = context.model, context.element_bytes
    h = m.moe_latent_size or m.hidden_size
    local = context.tokens / context.sequence_shards
    yield Linear(m.num_moe_experts, m.hidden_size, local)  # the router
    if m.moe_latent_size:
        yield Linear(h, m.hidden_size, local)
        yield Linear(m.hidden_size, h, local)
    passes, kernels = (
        (_FUSED_ROUTER_PASSES, _FUSED_ROUTER_KERNELS) if context.fused_router else (_ROUTER_PASSES, _ROUTER_KERNELS)
    )
    logits = FP32_BYTES * local * m.num_moe_experts * passes
    yield Stream(logits, logits, kernels)
    routed = local * m.moe_router_topk * context.sent_to_experts
    yield from _dispatch(context, local, routed, h)
    passes = _ORDERING_PASSES["flex" if context.sends_once_per_node else "alltoall"]
    ordered = passes * e * h * routed
    yield Stream(ordered, ordered, _ORDERING_KERNELS)
    yield from _grouped(context, routed, h)
    if m.moe_shared_expert_intermediate_size:
        shared = feed_forward(context, m.moe_shared_expert_intermediate_size / context.tp)
        yield Module("shared_experts", tuple(shared))


def _dispatch(context: LayerContext, local: float, routed: float, h: int) -> Iterator[Operation | Module]:
    """The copies to the ranks of their experts and back, and the gather between an expert's tensor ranks."""
    m, e, cal = context.model, context.element_bytes, context.calibration
    if context.ep > 1:
        across = moved = e * routed * h
        nodes = context.ep / local_ranks(context.gpu, context.ep, context.etp)
        if context.sends_once_per_node and nodes > 1:
            across = e * local * h * nodes_met(m, nodes)
        group = Group(context.ep, context.etp)
        hidden = max(cal.expert_overlap, _OVERLAPPED_EXCHANGE if context.hides_expert_exchange else 0.0)
        yield AllToAlls(Term.expert_parallel, group, moved, _EXCHANGES, _EXCHANGE_KERNELS, across, hidden=hidden)
    if context.etp > 1:
        total = e * routed * context.etp * h
        yield Gathers(Term.tensor_parallel, Group(context.etp, 1), total, _EXCHANGES, _EXCHANGES, kernels=2)


def _grouped(context: LayerContext, routed: float, h: int) -> Iterator[Operation | Module]:
    """The experts of one rank in grouped products, as many rows to each as the busiest rank's experts get."""
    m = context.model
    count = m.num_moe_experts // context.ep
    imbalance = min(context.calibration.expert_imbalance, context.expert_capacity or math.inf)
    busiest = 1.0 if context.pads_experts else imbalance
    rows = routed * context.ep * context.etp * busiest / m.num_moe_experts
    width, up = m.moe_ffn_hidden_size / context.etp, 2 if m.gated_linear_unit else 1
    yield Linear(up * width, h, rows, count)
    yield Linear(h, width, rows, count)
    yield Module("moe_act", (activation(context, rows * count, width),))
    if m.add_bias_linear:
        yield ExpertBias(rows * count * h, count)


def nodes_met(model: Model, nodes: float) -> float:
    """Nodes on which a token's experts are, on average, of the ``nodes`` that hold all experts.

    A router with groups chooses experts from a few of the groups only (DeepSeek-V3's node-limited routing,
    arXiv:2412.19437, section 2.1.2). Consecutive experts form a group.
    """
    reached, groups, chosen = nodes, model.moe_router_num_groups, model.moe_router_group_topk
    if groups and nodes >= groups:
        reached = nodes * chosen / groups
    elif groups:  # a node holds several groups: it is reached unless all chosen groups are elsewhere
        elsewhere = groups - round(groups / nodes)
        reached = nodes * (1 - math.comb(elsewhere, chosen) / math.comb(groups, chosen))
    return reached * (1 - (1 - 1 / reached) ** model.moe_router_topk)
