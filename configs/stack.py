"""What is known of the software behind a published measurement: one YAML file per stack, selected by a row's citation.

A published table states sizes and speeds. How gradients are reduced, which loss kernel runs and which memory figure is
printed follow from the software that was measured. Each such decision is a field of :class:`Stack`; the file of a stack
gives, under ``because``, the source of each decision or the reason for inferring it.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from slipway.configs.convert import convert
from slipway.configs.errors import Refusal
from slipway.configs.files import ROOT, parse_yaml
from slipway.configs.schema import Dispatcher

FOLDER = ROOT / "stack"
UNKNOWN = "unknown"  # the stack of a citation that no other stack matches


class CudaGraphs(Enum):
    """Where a stack's recipes capture CUDA graphs."""

    never = "never"
    experts_on_grace = "experts_on_grace"  # expert layers on GB200 and GB300


class MemoryFigure(Enum):
    """Which peak a stack prints."""

    busiest_rank = "busiest_rank"  # the allocator's peak on the rank that needs most
    last_stage = "last_stage"  # the allocator's peak on the last rank, which is on the last pipeline stage
    reserved = "reserved"  # what the caching allocator has reserved on the busiest rank
    device = "device"  # all that is in use on the GPU: the reserve, the CUDA context and NCCL


class PipelineSplit(Enum):
    """How layers that do not divide evenly go to pipeline stages."""

    balanced = "balanced"  # the first even split that Megatron-Core can express
    front_first = "front_first"  # every stage but the last gets ceil(layers / stages) layers


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One software stack. A decision's default is what Megatron-Core does without options."""

    name: str
    matches: list[str] = field(default_factory=list)
    """Regular expressions; one of them must be found in "source, framework" of a row."""
    precedence: int = 0
    """Of several stacks that match, the one with the highest precedence is taken: 1 a framework, 2 a repository or
    paper, 3 a release of it, 4 a kind of document in it."""
    extends: str = ""
    """Another stack whose decisions hold here too unless this file sets them."""
    example: str = ""
    """A citation, "source, framework", that selects this stack."""
    because: dict[str, str] = field(default_factory=dict)
    """For each decision that the file sets: its source, or the reason for inferring it."""

    generation: str = ""
    """The set of constants in configs/calibration that its speed is predicted with; empty: the GPU's default."""
    grad_reduce_in_fp32: bool = True
    """False: gradients are reduced over data-parallel ranks in 16 bits."""
    fused_cross_entropy: bool = False
    """Whether one kernel computes the loss, so that no fp32 copy of the logits is written."""
    fp8_param_gather: bool = False
    """Whether parameters are stored and gathered in fp8 where the matrix products are in fp8."""
    multi_token_prediction: bool = True
    """False: a model's multi-token-prediction layers are not trained."""
    sequence_parallel: bool = True
    """False: activations between tensor-parallel regions are replicated."""
    distributed_optimizer: bool = True
    """False: every data-parallel rank holds the whole optimizer state."""
    dispatcher: Dispatcher = Dispatcher.alltoall
    cuda_graphs: CudaGraphs = CudaGraphs.never
    recompute: str = ""
    """What "selective", or nothing, means in a row's recompute column, in the tables' notation; empty: no recompute."""
    memory_figure: MemoryFigure = MemoryFigure.busiest_rank
    pipeline_split: PipelineSplit = PipelineSplit.balanced


DECISIONS = (
    "generation grad_reduce_in_fp32 fused_cross_entropy fp8_param_gather multi_token_prediction sequence_parallel "
    "distributed_optimizer dispatcher cuda_graphs recompute memory_figure pipeline_split"
).split()


def _file(name: str) -> dict[str, Any]:
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise Refusal(f"configs/stack has no file {name}.yaml", "See the field `extends` of the files there.")
    return parse_yaml(path)


def _inherited(name: str) -> dict[str, Any]:
    """The decisions of the stack ``name`` and of those that it extends, with their reasons."""
    contents = _file(name)
    if not contents.get("extends"):
        return contents
    parent = _inherited(contents["extends"])
    kept = {key: value for key, value in parent.items() if key in DECISIONS}
    return kept | contents | {"because": parent.get("because", {}) | contents.get("because", {})}


@functools.cache
def stack(name: str) -> Stack:
    """The stack of the file configs/stack/``name``.yaml.

    Raises:
        Refusal: no such file, an unknown key, or a value of the wrong type.
    """
    return convert(Stack, _inherited(name), f"configs/stack/{name}.yaml: ")


@functools.cache
def stacks() -> tuple[Stack, ...]:
    """Every stack of configs/stack, those with the highest precedence first."""
    loaded = (stack(path.stem) for path in FOLDER.glob("*.yaml"))
    return tuple(sorted(loaded, key=lambda known: (-known.precedence, known.name)))


@functools.cache
def stack_of(source: str, framework: str) -> Stack:
    """The stack that a row's citation selects; ``unknown`` where none matches.

    Raises:
        ValueError: two stacks of equal precedence match.
    """
    citation = f"{source}, {framework}"
    found = [known for known in stacks() if any(re.search(pattern, citation) for pattern in known.matches)]
    if not found:
        return stack(UNKNOWN)
    first, *others = found
    if others and others[0].precedence == first.precedence:
        raise ValueError(f"its citation matches two stacks: configs/stack/{first.name}.yaml and {others[0].name}.yaml")
    return first
