"""The lines in which a training loop reports a step: NeMo's, Megatron-LM's and torchtitan's."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_ATTEMPTS = 50  # lines of a block that are tried, from its end, for one that reports a step
_WORDS = (b"iteration ", b"global_step", b"step: ")
_LINE_BYTES = 2000

_NEMO = re.compile(rb"iteration (?P<step>\d+)/(?P<last>\d+) \|.*?(?:train_step_timing in s: (?P<seconds>[\d.]+))?$")
_NEMO_SECONDS = re.compile(rb"train_step_timing in s: ([\d.]+)")
_NEMO_STEP = re.compile(rb"global_step[:=] ?([\d.e+]+)")
_MEGATRON = re.compile(rb"iteration +(?P<step>\d+)/ *(?P<total>\d+) \|")
_MEGATRON_MS = re.compile(rb"elapsed time per iteration \(ms\): ([\d.]+)")
_NAN_ITERATIONS = re.compile(rb"number of nan iterations: +([1-9]\d*)")
_TITAN = re.compile(rb"step: +(?P<step>\d+) .*loss: *[\d.]")
_LOSS = re.compile(rb"(?:reduced_train_loss|lm loss|loss)[:=] *([-+\w.]+)")


@dataclass(frozen=True)
class Step:
    """One step that a log reports.

    Attributes:
        step: its number as the log counts: NeMo from 0, Megatron-LM from 1.
        total: the steps of the whole run; 0 where the line does not say.
        seconds: what the step took; nan where the line does not say.
        loss: nan where it is not a number or not given.
        offset: of the line in its file, in bytes.
    """

    step: int
    total: int
    seconds: float
    loss: float
    nan_iterations: int
    offset: int


def step_in(line: bytes, offset: int = 0) -> Step | None:
    """The step that a line reports; None where it reports none."""
    loss = _number(_LOSS.search(line))
    if found := _MEGATRON.search(line):
        milliseconds = _MEGATRON_MS.search(line)
        if milliseconds:
            nans = _NAN_ITERATIONS.search(line)
            seconds = float(milliseconds[1]) / 1e3
            return Step(int(found["step"]), int(found["total"]), seconds, loss, int(nans[1]) if nans else 0, offset)
    if found := _NEMO.search(line):
        step = _NEMO_STEP.search(line)
        number = int(float(step[1])) if step else int(found["step"])
        return Step(number, int(found["last"]) + 1, _number(_NEMO_SECONDS.search(line)), loss, 0, offset)
    if found := _TITAN.search(line):
        return Step(int(found["step"]), 0, math.nan, loss, 0, offset)
    if b"it/s" in line and (found := _NEMO_STEP.search(line)):  # NeMo's progress bar
        return Step(int(float(found[1])), 0, math.nan, loss, 0, offset)
    return None


def last_step(block: bytes, end: int, offset: int) -> Step | None:
    """The last step that ``block[:end]`` reports; ``offset`` is the block's in its file."""
    for word in _WORDS:
        at = end
        for _ in range(_ATTEMPTS):
            at = block.rfind(word, 0, at)
            if at < 0:
                break
            if found := step_in(_line_around(block, at), offset + at):
                return found
    return None


def first_step(block: bytes, offset: int) -> Step | None:
    """The first step that a block reports."""
    for word in _WORDS:
        at = -1
        for _ in range(_ATTEMPTS):
            at = block.find(word, at + 1)
            if at < 0:
                break
            if found := step_in(_line_around(block, at), offset + at):
                return found
    return None


def _line_around(block: bytes, at: int) -> bytes:
    low, high = max(0, at - _LINE_BYTES), at + _LINE_BYTES
    start = max(block.rfind(b"\n", low, at), block.rfind(b"\r", low, at)) + 1 or low
    end = block.find(b"\n", at, high)
    return block[start : high if end < 0 else end].split(b"\r")[0]


def _number(found: re.Match[bytes] | None) -> float:
    try:
        return float(found[1]) if found else math.nan
    except ValueError:
        return math.nan
