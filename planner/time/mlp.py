"""What a dense feed-forward block does: two linear layers and the activation between them."""

from __future__ import annotations

from collections.abc import Iterator

from slipway.planner.time.operations import Linear, Module, Operation, Stream, adapter
from slipway.planner.workload import LayerContext


def feed_forward(context: LayerContext, width: float) -> Iterator[Operation | Module]:
    """Operations of a block whose inner width on this rank is ``width``."""
    h, up = context.model.hidden_size, 2 if context.model.gated_linear_unit else 1
    yield Linear(up * width, h, context.tokens)
    yield from adapter(context, "linear_fc1", up * width, h)
    yield Linear(h, width, context.tokens)
    yield from adapter(context, "linear_fc2", h, width)
    yield activation(context, context.tokens, width)


def activation(context: LayerContext, rows: float, width: float) -> Stream:
    """Reads the first projection's outputs (two where it is gated) and writes one; its backward pass reads one more."""
    up = 2 if context.model.gated_linear_unit else 1
    tensor = context.element_bytes * rows * width
    return Stream(tensor * (up + 1), tensor * (2 * up + 1), 1)
