"""The predicted step as a trace: it loads, its events are nested, and each stage's slices sum to the step."""

from __future__ import annotations

import gzip
import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from slipway import planner
from slipway.configs import load
from slipway.planner.time.operations import TERM_WORDS, Term
from slipway.planner.trace import write_trace
from tests.launch.test_cli import slipway

CASES = {
    "one stage": ("llama3_8b", ["gpus=16", "layout.tp=2"]),
    "interleaved, deferred weight gradients": ("llama3_70b", ["gpus=64", "layout.gbs=64"]),
    "experts": ("mixtral_8x7b", ["gpus=64", "layout.gbs=128"]),
    "zero bubble": ("llama3_70b", "gpus=64 layout.tp=4 layout.pp=4 layout.gbs=32 layout.schedule=zero_bubble".split()),
    "multi-token prediction": ("deepseek_v3", ["gpus=1024", "layout.gbs=1024"]),
    "offloaded activations": ("llama3_70b", ["gpus=64", "layout.tp=8", "layout.cpu_offload_layers=40"]),
}
Event = dict[str, Any]


def _slices(content: Any) -> dict[tuple[int, int], list[Event]]:
    """The complete events of each thread in the order in which they begin, the longest of those first."""
    assert content["displayTimeUnit"] == "ms"
    threads: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in content["traceEvents"]:
        assert event["ph"] in "MXbe" and {"name", "pid", "tid"} <= event.keys()
        if event["ph"] == "X":
            assert event["dur"] > 0 and event["ts"] >= 0
            threads[event["pid"], event["tid"]].append(event)
    return {key: sorted(found, key=lambda e: (e["ts"], -e["dur"])) for key, found in threads.items()}


def _tops(slices: list[Event]) -> list[Event]:
    """The slices that are in no other; asserts that every other slice is within its parent."""
    tops: list[Event] = []
    open_ends: list[float] = []
    for event in slices:
        start, stop = event["ts"], round(event["ts"] + event["dur"], 3)
        while open_ends and open_ends[-1] <= start + 1e-6:
            open_ends.pop()
        assert not open_ends or stop <= open_ends[-1] + 2e-3, f"{event} ends after what it began in"
        if not open_ends:
            tops.append(event)
        open_ends.append(stop)
    return tops


@pytest.mark.parametrize("case", CASES)
def test_the_slices_of_every_stage_are_nested_and_sum_to_the_step(case: str, tmp_path: Path) -> None:
    name, overrides = CASES[case]
    spec = planner.complete(load(name, overrides))
    count = write_trace(spec, tmp_path / "step.json")
    content = json.loads((tmp_path / "step.json").read_text())
    assert len(content["traceEvents"]) == count and not list(tmp_path.glob("*.partial"))
    step_us = planner.step_time(spec).step_time_s * 1e6
    threads = _slices(content)
    assert {stage for stage, _ in threads} == set(range(spec.layout.pp))
    for slices in threads.values():
        tops = _tops(slices)
        assert sum(event["dur"] for event in tops) == pytest.approx(step_us, rel=1e-6)
        assert all(a["ts"] + a["dur"] == pytest.approx(b["ts"], abs=2e-3) for a, b in itertools.pairwise(tops))
        passes = [event for event in tops if event["cat"] == "pass"]
        kinds = 3 if case == "zero bubble" else 2
        assert len(passes) == kinds * spec.batch.num_micro_batches * spec.layout.vpp


def test_every_collective_of_the_step_is_there(tmp_path: Path) -> None:
    name, overrides = CASES["experts"]
    spec = planner.complete(load(name, overrides))
    write_trace(spec, tmp_path / "step.json.gz")
    with gzip.open(tmp_path / "step.json.gz", "rt") as file:
        content = json.load(file)
    spent: dict[str, float] = defaultdict(float)
    for event in content["traceEvents"]:
        if event["ph"] == "X" and event["pid"] == 0:
            spent[event["name"]] += event["dur"] / 1e6
    breakdown = planner.step_time(spec).breakdown
    for term in (Term.expert_parallel, Term.data_parallel, Term.optimizer):
        assert breakdown[term.value] > 0 and spent[TERM_WORDS[term]] > 0
    sends = [event for event in content["traceEvents"] if event["ph"] == "b"]
    boundaries = spec.layout.pp * spec.layout.vpp - 1
    assert len(sends) == 2 * boundaries * spec.batch.num_micro_batches


def test_check_writes_it(tmp_path: Path) -> None:
    words = ("check", "llama3_8b", "gpus=16", "layout.tp=2")
    slipway(*words, "--trace", str(tmp_path / "step.json"))
    assert json.loads((tmp_path / "step.json").read_text())["otherData"]["name"] == "llama3_8b"
    refused = slipway(*words, "--trace", str(tmp_path / "none" / "step.json"), code=2)
    assert "step.json cannot be written: No such file or directory" in refused.stderr
