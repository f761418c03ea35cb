"""What a Mamba-2 block does: projections, a short convolution, the chunked scan, a gated norm.

Symbols:
    t      tokens of a micro-batch on one context rank
    h      hidden size
    width  channels of one rank's inner state
    gate   bytes of a tensor of that width
    rest   bytes of the projection's other outputs: x, B, C and dt
    e      bytes of an activation's element
"""

from __future__ import annotations

from collections.abc import Iterator

from slipway.planner import flops
from slipway.planner.numerics import FP32_BYTES
from slipway.planner.time.operations import AllToAlls, Group, Linear, Module, Operation, Scan, Stream, Term
from slipway.planner.workload import LayerContext


def mamba(context: LayerContext) -> Iterator[Operation | Module]:
    m, t, e = context.model, context.tokens, context.element_bytes
    width, projected = m.mamba_width / context.tp, m.mamba_projection / context.tp
    yield Linear(projected, m.hidden_size, t)
    yield Linear(m.hidden_size, width, t)
    gate, rest = e * t * width, e * t * (projected - width)
    # [s, b, h] is copied to [b, s, h] and back (megatron-core's MambaMixer.forward)
    transposed = 2 * (gate + rest) + 2 * gate
    yield Stream(transposed, transposed, 2)
    # The convolution reads and writes; three kernels read x, B and C; each chunk's state is written, passed on (read
    # and written) and read in fp32; the gated norm reads two tensors and writes one. The backward pass keeps none of
    # it: it runs them again, and then their gradients.
    states = FP32_BYTES * t * width * m.mamba_state_dim / flops.MAMBA_CHUNK
    once = 2 * rest + 3 * rest + gate + 4 * states + 3 * gate
    yield Stream(once, 3 * once, 7)
    if context.cp > 1:  # the sequence is exchanged for heads, and back
        exchanged = e * t * (projected + width)
        yield AllToAlls(Term.context_parallel, Group(context.cp, context.tp), exchanged, 1, 4)
    yield Scan(flops.mamba_scan(m) * t / context.tp)
