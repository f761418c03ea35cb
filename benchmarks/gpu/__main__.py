"""Llama-3-8B's layers on one card: our recipe in every precision, recompute and micro-batch, the peers beside it, the planner before it.

    python -m benchmarks.gpu --out rows.jsonl                 on a Hopper card; one process a case, one line a row as it comes
    python -m benchmarks.gpu --out rows.jsonl --minutes 9     what fits into nine minutes; said again, it goes on where it stopped
    python -m benchmarks.gpu --predict --gpu h200             what the planner says of every case, without a card
    python -m benchmarks.gpu --cpu --out rows.jsonl           the same scripts at toy size, to prove them without a card
    python -m benchmarks.gpu --read rows.jsonl                the tables again

Every prediction is written before the first case is run. The cases that answer most come first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.breakdown import PLANNED
from benchmarks.gpu.measure import Case
from slipway import configs, planner
from slipway.launch.doctor.commands import printed_by

PRECISIONS = ("bf16", "fp8_current", "fp8_delayed", "fp8_blockwise")
# Megatron-Core's selective recompute is of core_attn, which fused attention has no use for: the feed-forward's is measured
RECOMPUTE = {
    "none": ["layout.recompute=none"],
    "selective": ["layout.recompute=selective", "layout.recompute_modules=[mlp]"],
    "full": ["layout.recompute=full"],
}
MICRO_BATCHES = (1, 2, 4)
PEERS = ("torch", "torch_float8", "transformers")  # as benchmarks.gpu.peers has them; importing it would import torch
FEW = 8  # layers that leave room for every case
SEQUENCES = 4  # a step, whatever the micro-batch
# What a step that is too slow could be mended with, one at a time.
VARIANTS = (
    ("bf16", "layout.attention_backend=flash"),
    ("bf16", "layout.fused_cross_entropy=false"),
    ("bf16", "layout.cuda_graphs=true"),
    ("fp8_current", "layout.cuda_graphs=true"),
    ("fp8_current", "precision.fp8_param_gather=false"),
)
CASE_TIMEOUT_S = 240


def cases(cpu: bool, gpu: str, most: int) -> list[Case]:
    """The whole matrix: first what the ratios are taken from, last what only fills the table. ``most`` is the layers that fit."""
    if cpu:
        toy = ["gpus=1", "layout.tp=1", "precision=fp32", "layout.seq_length=128", "layout.mbs=1", "layout.gbs=2"]
        return [
            Case(who, "llama3_tiny", toy, cpu=True, steps=2, warm_up=1, profile=True) for who in ("slipway", *PEERS)
        ]

    def case(who: str, layers: int, precision: str, mbs: int, recompute: str = "none", *more: str) -> Case:
        words = [f"gpu={gpu}", "gpus=1", "layout.tp=1", "layout.seq_length=8192", f"layout.gbs={SEQUENCES}"]
        words += [
            f"model.num_layers={layers}",
            f"precision={precision}",
            f"layout.mbs={mbs}",
            *RECOMPUTE[recompute],
            *more,
        ]
        return Case(who, overrides=words)

    def peer(who: str, mbs: int) -> Case:
        return case(who, FEW, "fp8_current" if who == "torch_float8" else "bf16", mbs)

    first = [case("slipway", FEW, precision, 1) for precision in PRECISIONS] + [peer(who, 1) for who in PEERS]
    out = [replace(c, profile=True) for c in first]
    out += [case("slipway", most, precision, 1) for precision in PRECISIONS]
    out += [case("slipway", FEW, precision, mbs) for mbs in MICRO_BATCHES[1:] for precision in PRECISIONS]
    out += [peer(who, mbs) for mbs in MICRO_BATCHES[1:] for who in PEERS]
    out += [case("slipway", FEW, precision, 1, "none", change) for precision, change in VARIANTS]
    for layers, recompute, mbs in itertools.product((FEW, most), RECOMPUTE, MICRO_BATCHES):
        out += [case("slipway", layers, precision, mbs, recompute) for precision in PRECISIONS]
    return [c for i, c in enumerate(out) if not any(replace(c, profile=b.profile) == b for b in out[:i])]


def layers_that_fit(gpu: str) -> int:
    """The most layers that the planner says fit in bf16 without recompute."""
    for layers in range(32, 0, -1):
        words = [
            f"gpu={gpu}",
            "gpus=1",
            "layout.tp=1",
            "layout.mbs=1",
            f"layout.gbs={SEQUENCES}",
            f"model.num_layers={layers}",
        ]
        verdict = planner.check(planner.complete(configs.load("llama3_8b", [*words, "precision=bf16"])))
        if verdict.memory and verdict.memory.fits:
            return layers
    raise configs.Refusal(f"not one layer fits on {gpu}")


def predict(case: Case) -> dict[str, Any]:
    """What ``slipway check`` says of a case of ours; empty for the peers and for the CPU."""
    if case.who != "slipway" or case.cpu:
        return {}
    verdict = planner.check(case.spec)
    if not (verdict.legal and verdict.memory and verdict.time):
        return {"violations": [v.rule for v in verdict.violations]}
    memory, seconds = verdict.memory, verdict.time
    return {
        "step_time_s": seconds.step_time_s,
        "tokens_per_s": seconds.tokens_per_s_per_gpu,
        "mfu": seconds.mfu,
        "breakdown": seconds.breakdown,
        "peak_gib": memory.peak_gib,
        "needed_gib": memory.needed_gib,
        "fits": memory.fits,
    }


class Process:
    """One case's process, importing while another case is measured; it touches the card when it is told to."""

    def __init__(self, case: Case) -> None:
        from slipway.launch.executors import environment

        self.case = case
        words = [sys.executable, "-m", "benchmarks.gpu.measure", json.dumps(asdict(case)), "--wait"]
        pipe = subprocess.PIPE
        env = environment(case.spec) | os.environ  # as a launched run's, for peers too
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)

    def measure(self, timeout_s: float) -> dict[str, Any]:
        """The case's row, or why there is none."""
        try:
            out, said = self._process.communicate("go\n", timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.stop()
            return self._failed(f"not done in {timeout_s:.0f} s")
        for line in out.splitlines():
            if line.startswith("ROW "):
                return dict(json.loads(line[4:]))
        return self._failed(
            "out of memory" if "out of memory" in said.lower() else (said.strip().splitlines() or ["no output"])[-1]
        )

    def _failed(self, why: str) -> dict[str, Any]:
        return {"who": self.case.who, "case": asdict(self.case), "failed": why}

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def _told(row: dict[str, Any]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in row["case"]["overrides"])


def describe(row: dict[str, Any]) -> str:
    """A case in one line: whose, layers, precision, recompute, micro-batch, and what else was asked for."""
    told = _told(row)
    known = "gpu gpus precision layout.tp layout.seq_length layout.gbs model.num_layers layout.recompute layout.recompute_modules layout.mbs"
    more = " ".join(f"{k.split('.')[-1]}={v}" for k, v in told.items() if k not in known.split())
    layers = f"{told['model.num_layers']} layers " if "model.num_layers" in told else ""
    recompute = told.get("layout.recompute", "none")
    recompute = "" if recompute == "none" else f" recompute {recompute}"
    return (
        f"{row['who']} {layers}{told.get('precision', '')} mbs {told.get('layout.mbs', '')}{recompute} {more}".strip()
    )


_HEAD = ("case", "step s", "tokens/s", "TFLOP/s", "MFU", "GiB", "pred. s", "error", "pred. GiB", "error")


def predicted_table(rows: list[dict[str, Any]]) -> str:
    """What the planner says of every case, as Markdown."""
    lines = ["| case | step s | tokens/s | MFU | peak GiB | of the card GiB |", "|---|---|---|---|---|---|"]
    for row in rows:
        p = row["predicted"]
        told = f"{p['step_time_s']:.3f} | {p['tokens_per_s']:,.0f} | {p['mfu']:.1%} | {p['peak_gib']:.1f} | {p['needed_gib']:.1f}"
        lines.append(f"| {describe(row)} | {told}{'' if p['fits'] else ': does not fit'} |")
    return "\n".join(lines)


def tables(rows: list[dict[str, Any]]) -> str:
    """Measured, predicted against measured, where the profiled steps go, and the ratios that the goals are about; as Markdown."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|---" * len(_HEAD) + "|"]
    for row in rows:
        cells = [""] * (len(_HEAD) - 1)
        p = row.get("predicted", {})
        measured = "step_time_s" in row
        if measured:
            cells[:3] = f"{row['step_time_s']:.3f}", f"{row['tokens_per_s']:,.0f}", f"{row['model_tflops']:.3g}"
            cells[3] = f"{row['mfu']:.1%}" if row["mfu"] else ""
            cells[4] = f"{row['peak_gib']:.1f}" if row["peak_gib"] else ""
        elif "failed" in row:
            cells[0] = row["failed"]
        if "step_time_s" in p:
            cells[5] = f"{p['step_time_s']:.3f}"
            cells[7] = f"{p['peak_gib']:.1f}" + ("" if p["fits"] else ": does not fit")
            cells[6] = f"{p['step_time_s'] / row['step_time_s'] - 1:+.1%}" if measured else ""
            cells[8] = f"{p['peak_gib'] / row['peak_gib'] - 1:+.1%}" if measured and row["peak_gib"] else ""
        lines.append("| " + " | ".join([describe(row), *cells]) + " |")
    done = [row for row in rows if "step_time_s" in row]
    return "\n".join(lines + _breakdowns(done) + _goals(done))


def _breakdowns(done: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in done:
        if not row["breakdown"]:
            continue
        planned = row.get("predicted", {}).get("breakdown", {})
        lines += ["", f"{describe(row)}, one step, in seconds{' (predicted)' if planned else ''}:"]
        for label, (ours, theirs) in PLANNED.items():
            spent = sum(row["breakdown"].get(k, 0.0) for k in ours)
            lines.append(
                f"- {label} {spent:.3f}" + (f" ({sum(planned.get(k, 0.0) for k in theirs):.3f})" if planned else "")
            )
        lines.append("- slowest: " + "; ".join(f"{name[:60]} ({kind}) {s:.3f}" for name, kind, s in row["slowest"][:3]))
    return lines


def _goals(done: list[dict[str, Any]]) -> list[str]:
    """fp8 over bf16 and ours over the best peer, at the same shapes; bf16's best MFU."""
    rate: dict[tuple[str, ...], float] = {}
    for row in done:
        told = _told(row)
        if told.get("layout.recompute", "none") == "none" and row["mfu"]:
            key = (row["who"], told["precision"], told["model.num_layers"], told["layout.mbs"])
            rate[key] = max(rate.get(key, 0.0), row["tokens_per_s"])
    lines = []
    for (who, precision, layers, mbs), ours in rate.items():
        if who != "slipway":
            continue
        at = f"{layers} layers, micro-batch {mbs}"
        bf16 = rate.get((who, "bf16", layers, mbs))
        if precision != "bf16" and bf16:
            lines.append(f"- {precision} over bf16, {at}: {ours / bf16:.2f}x (goal 1.4x)")
        peers = {
            k: v
            for k, v in rate.items()
            if k[0] != "slipway" and k[2:] == (layers, mbs) and (k[1] == "bf16") == (precision == "bf16")
        }
        if peers:
            best = max(peers, key=lambda k: peers[k])
            lines.append(f"- ours in {precision} over {best[0]}, {at}: {ours / peers[best]:.2f}x (goal 1.1x)")
    best_mfu = max(
        (row["mfu"] for row in done if row["who"] == "slipway" and row["mfu"] and _told(row)["precision"] == "bf16"),
        default=0.0,
    )
    return ["", *lines, f"- bf16, best MFU: {best_mfu:.1%} (goal 55%)"] if best_mfu else []


def card() -> str:
    """The GPU of this machine, by its name in configs/gpu.

    Raises:
        Refusal: there is none, or one whose peak is not known.
    """
    listed = printed_by("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if not listed:
        raise configs.Refusal(
            "there is no GPU here", "Prove the scripts with --cpu, or name one for --predict with --gpu."
        )
    name = listed.splitlines()[0]
    gpu = configs.gpu_of_device(name)
    if gpu is None:
        raise configs.Refusal(
            f"{name} is not in configs/gpu: its peak is not known", "Add a file for it, or name one with --gpu."
        )
    return gpu.name


def run_all(todo: list[Case], predictions: list[dict[str, Any]], out: Path, minutes: float) -> list[dict[str, Any]]:
    """Measure what ``out`` does not hold yet, until the minutes are over; every row is written as it comes."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    held = [row["case"] for row in rows]
    left = [(c, p) for c, p in zip(todo, predictions, strict=True) if asdict(c) not in held]
    end = time.monotonic() + 60 * minutes
    waiting = Process(left[0][0]) if left else None
    with out.open("a") as file:
        for i, (_, predicted) in enumerate(left):
            process, waiting = waiting, Process(left[i + 1][0]) if i + 1 < len(left) else None
            assert process is not None
            spare = end - time.monotonic()
            if spare <= 0:
                process.stop()
                print(f"{len(left) - i} of {len(todo)} cases are left; the same command goes on", file=sys.stderr)
                break
            row = process.measure(min(CASE_TIMEOUT_S, spare))
            if "failed" in row and spare < CASE_TIMEOUT_S:
                continue  # cut off by the budget, not by itself: not a row
            row["predicted"] = predicted
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(describe(row), row.get("failed") or f"{row['step_time_s']:.3f} s", file=sys.stderr, flush=True)
    if waiting is not None:
        waiting.stop()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--gpu", default="", help="in configs/gpu; the machine's own if not given")
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("rows.jsonl"))
    parser.add_argument("--minutes", type=float, default=24 * 60)
    parser.add_argument("--read", type=Path)
    options = parser.parse_args()
    if options.read:
        return print(tables([json.loads(line) for line in options.read.read_text().splitlines()]))
    gpu = "" if options.cpu else options.gpu or card()
    todo = cases(options.cpu, gpu, 0 if options.cpu else layers_that_fit(gpu))
    predictions = [predict(case) for case in todo]
    planned = [{"who": c.who, "case": asdict(c), "predicted": p} for c, p in zip(todo, predictions, strict=True)]
    if options.predict:
        return print(predicted_table([row for row in planned if row["predicted"]]))
    options.out.with_suffix(".predicted.json").write_text(json.dumps(planned, indent=1))
    return print(tables(run_all(todo, predictions, options.out, options.minutes)))


if __name__ == "__main__":
    try:
        main()
    except configs.Refusal as refusal:
        print(refusal.sentence(), file=sys.stderr)
        sys.exit(2)
