"""The predicted step as a timeline that Perfetto and Chrome open: every stage, chunk, pass and collective.

A stage is a process. Its passes tile the step without a gap or an overlap: what is no pass is a bubble, or what follows
the pipeline. In a pass stand its blocks (embedding, layers, loss), and in a block what its time is spent on; the order
of kernels within a layer is not predicted. Sends between stages are asynchronous events. The format is Chrome's (Trace
Event Format, JSON object), with times in microseconds.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slipway.configs import Spec
from slipway.planner.layout import describe
from slipway.planner.time.layer import Cost, model_costs
from slipway.planner.time.operations import TERM_WORDS, Term
from slipway.planner.time.schedule import Task, Timeline, kind_of, simulate
from slipway.planner.time.step import StepTime, workload_step_time
from slipway.planner.workload import Workload, workload_of

_NS_PER_S = 1_000_000_000
_COMMUNICATION = (Term.tensor_parallel, Term.context_parallel, Term.expert_parallel, Term.data_parallel, Term.offload)
_PHASES = {"F": "forward", "B": "backward", "W": "weight gradients"}
_AFTER = (Term.data_parallel, Term.optimizer, Term.other)  # what follows the pipeline, in this order


@dataclass(frozen=True)
class _Block:
    """A part of a pass, and the seconds that it is spent on, in order."""

    name: str
    spent: tuple[tuple[Term, float], ...]

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.spent)


@dataclass(frozen=True)
class _Passes:
    """The blocks of a chunk's forward and backward pass."""

    forward: tuple[_Block, ...]
    backward: tuple[_Block, ...]


def write_trace(spec: Spec, path: Path) -> int:
    """Write the predicted step of a legal ``spec`` and return the number of events; ``.gz`` is compressed.

    Raises:
        OSError: the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    count = 0
    with gzip.open(partial, "wt") if path.suffix == ".gz" else partial.open("w") as file:
        file.write('{"displayTimeUnit": "ms", "otherData": ')
        json.dump({"name": spec.name, "layout": describe(spec), "what": "a prediction, not a measurement"}, file)
        file.write(', "traceEvents": [')
        for event in events(spec):
            file.write(",\n" if count else "\n")
            json.dump(event, file, separators=(",", ":"))
            count += 1
        file.write("\n]}\n")
    partial.replace(path)
    return count


def events(spec: Spec) -> Iterator[dict[str, Any]]:
    """The events of the step of a legal ``spec``; the slices of each stage that are in no other sum to its time."""
    work = workload_of(spec)
    time, lay = workload_step_time(work), spec.layout
    line = simulate(
        kind_of(lay), time.stage_forward_s, time.stage_backward_s, work.num_micro_batches, time.send_s, record=True
    )
    after = [(term, time.breakdown[term.value]) for term in _AFTER]
    end_s = time.step_time_s - sum(seconds for _, seconds in after)
    scale = min(end_s / line.makespan, 1.0) if line.makespan else 1.0
    chunks = _chunks(work, time)
    for stage in range(lay.pp):
        yield _metadata("process_name", stage, {"name": f"stage {stage}"})
        yield _metadata("process_sort_index", stage, {"sort_index": stage})
        yield _metadata("thread_name", stage, {"name": "passes"})
        yield from _stage_events(stage, line, chunks, scale, end_s)
        start = end_s
        for term, seconds in after:
            yield from _slice(TERM_WORDS[term], term, stage, start, start + seconds)
            start += seconds
    if lay.pp > 1:
        yield from _sends(line, lay.pp, lay.vpp, time.send_s * scale, scale)


def _metadata(name: str, stage: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": stage, "tid": 0, "args": args}


def _microseconds(seconds: float) -> float:
    """On a grid of nanoseconds, so that what touches in seconds touches in the file."""
    return round(seconds * _NS_PER_S) / 1000


def _slice(
    name: str, term: Term | None, stage: int, start: float, stop: float, **args: Any
) -> Iterator[dict[str, Any]]:
    """One complete event; none where it is shorter than the grid."""
    first, last = _microseconds(start), _microseconds(stop)
    if last <= first:
        return
    category = "pass" if term is None else "communication" if term in _COMMUNICATION else "compute"
    event = {"ph": "X", "name": name, "cat": category, "pid": stage, "tid": 0, "ts": first}
    yield event | {"dur": round(last - first, 3)} | ({"args": args} if args else {})


def _stage_events(
    stage: int, line: Timeline, chunks: dict[tuple[int, int], _Passes], scale: float, end_s: float
) -> Iterator[dict[str, Any]]:
    """The passes of a stage in order, what is in them, and the bubbles between them."""
    now = 0.0
    for task in sorted((task for task in line.tasks if task.stage == stage), key=lambda task: task.start):
        start, stop = task.start * scale, task.stop * scale
        yield from _slice("bubble", Term.bubble, stage, now, start)
        name = f"{_PHASES[task.phase]} {task.micro_batch + 1}"
        yield from _slice(name, None, stage, start, stop, chunk=task.chunk, micro_batch=task.micro_batch + 1)
        yield from _inside(task, chunks[stage, task.chunk], start, stop)
        now = stop
    yield from _slice("bubble", Term.bubble, stage, now, end_s)


def _inside(task: Task, passes: _Passes, start: float, stop: float) -> Iterator[dict[str, Any]]:
    """The blocks of a pass and their terms, stretched to fill it."""
    blocks = passes.forward if task.phase == "F" else passes.backward
    total = sum(block.seconds for block in blocks)
    if total <= 0:
        return
    stretch, now = (stop - start) / total, start
    for block in blocks:
        until = now + block.seconds * stretch
        yield from _slice(block.name, None, task.stage, now, min(until, stop))
        inner = now
        for term, seconds in block.spent:
            yield from _slice(TERM_WORDS[term], term, task.stage, inner, min(inner + seconds * stretch, stop))
            inner += seconds * stretch
        now = until


def _sends(line: Timeline, pp: int, vpp: int, send_s: float, scale: float) -> Iterator[dict[str, Any]]:
    """What a pass hands to the neighbour that goes on: activations forward, gradients backward."""
    last = pp * vpp - 1
    for number, task in enumerate(line.tasks):
        place = task.chunk * pp + task.stage
        if task.phase == "W" or place == (last if task.phase == "F" else 0):
            continue
        what = "activations" if task.phase == "F" else "gradients"
        common = {"name": f"send {what} {task.micro_batch + 1}", "cat": "communication", "id": number}
        common |= {"pid": task.stage, "tid": 0}
        yield common | {"ph": "b", "ts": _microseconds(task.stop * scale)}
        yield common | {"ph": "e", "ts": _microseconds(task.stop * scale + send_s)}


def _chunks(work: Workload, time: StepTime) -> dict[tuple[int, int], _Passes]:
    """The blocks of every chunk, by stage and chunk of the stage."""
    costs, lay = model_costs(work), work.spec.layout
    found: dict[tuple[int, int], _Passes] = {}
    for index, (chunk, layers) in enumerate(zip(work.chunks, work.layers, strict=True)):
        parts: list[tuple[str, Cost, int]] = []
        if chunk.embeds:
            parts.append(("embedding", costs.embedding, 1))
        for layer, count in layers:
            parts.append((f"{count} {_words(layer)} layer{'s' if count > 1 else ''}", costs.layers[layer], count))
        predictions = work.context.model.mtp_num_layers
        if chunk.loses:
            parts += [("multi-token prediction", cost, predictions) for cost in costs.prediction]
            parts.append(("logits and loss", costs.loss, 1 + predictions))
        place = (chunk.stage, index // lay.pp)
        forward = [_block(name, cost.forward, count) for name, cost, count in parts]
        backward = [_block(name, cost.backward, count) for name, cost, count in reversed(parts)]
        stage, virtual = place
        found[place] = _Passes(
            tuple(_as_simulated(forward, time.stage_forward_s[stage][virtual])),
            tuple(_as_simulated(backward, time.stage_backward_s[stage][virtual])),
        )
    return found


def _words(layer: Any) -> str:
    kind = layer.kind
    mixer, feed_forward = (part.value for part in (kind.mixer, kind.feed_forward))
    return "+".join(part for part in (mixer, feed_forward) if part != "none") + (" bf16" if layer.unquantized else "")


def _block(name: str, spent: dict[Term, float], count: int) -> _Block:
    return _Block(name, tuple((term, count * seconds) for term, seconds in spent.items() if seconds > 0))


def _as_simulated(blocks: Sequence[_Block], seconds: float) -> list[_Block]:
    """The blocks with what the schedule adds to or takes from a pass: copies to the host, deferred weight gradients."""
    found = list(blocks)
    rest = seconds - sum(block.seconds for block in found)
    if rest > 1e-9:
        found.append(_Block("activations to the host", ((Term.offload, rest),)))
    for i, block in enumerate(found):
        if rest < -1e-9 and block.name == "logits and loss" and block.seconds + rest > 0:
            kept = 1 + rest / block.seconds
            found[i] = replace(block, spent=tuple((term, kept * s) for term, s in block.spent))
    return found
