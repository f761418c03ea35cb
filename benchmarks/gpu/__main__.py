"""Llama-3-8B's layers on one card: our recipe in every precision, recompute and micro-batch, the peers beside it, the planner before it.

    python -m benchmarks.gpu --out rows.jsonl            on a Hopper card; one process a case, one line a row as it comes
    python -m benchmarks.gpu --cpu --out rows.jsonl      the same scripts at toy size, to prove them without a card
    python -m benchmarks.gpu --read rows.jsonl           the tables again

Every prediction is written before its case is run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import configs
import planner
from benchmarks.gpu.measure import Case

PRECISIONS = ("bf16", "fp8_current", "fp8_delayed", "fp8_blockwise")
RECOMPUTE = ("none", "selective", "full")
MICRO_BATCHES = (1, 2, 4)
PEERS = ("torch", "torch_float8", "transformers")  # as benchmarks.gpu.peers has them; importing it would import torch


def cases(cpu: bool, gpu: str, layers: int) -> list[Case]:
    """The whole matrix: ours first, then the peers at the same shapes."""
    if cpu:
        toy = ["gpus=1", "layout.tp=1", "precision=fp32", "layout.seq_length=128", "layout.mbs=1", "layout.gbs=2"]
        return [Case(who, "llama3_tiny", toy, cpu=True, steps=3, warm_up=1) for who in ("slipway", "torch", "transformers")]
    shape = [f"gpu={gpu}", "gpus=1", "layout.tp=1", "layout.seq_length=8192", f"model.num_layers={layers}"]
    out = []
    for precision in PRECISIONS:
        for recompute in RECOMPUTE:
            for mbs in MICRO_BATCHES:
                more = [f"precision={precision}", f"layout.recompute={recompute}", f"layout.mbs={mbs}", f"layout.gbs={4 * mbs}"]
                out.append(Case("slipway", overrides=shape + more))
    for peer in PEERS:
        for mbs in MICRO_BATCHES:
            out.append(Case(peer, overrides=[*shape, "precision=bf16", f"layout.mbs={mbs}", f"layout.gbs={4 * mbs}"]))
    return out


def layers_that_fit(gpu: str) -> int:
    """The most layers whose lightest case the planner says fits."""
    for layers in range(32, 0, -1):
        words = [f"gpu={gpu}", "gpus=1", "layout.tp=1", "layout.mbs=1", "layout.gbs=4", f"model.num_layers={layers}", "precision=bf16"]
        verdict = planner.check(planner.complete(configs.load("llama3_8b", words)))
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
    return {"step_time_s": verdict.time.step_time_s, "peak_gib": verdict.memory.peak_gib, "fits": verdict.memory.fits}


def run(case: Case, timeout_s: float = 300) -> dict[str, Any]:
    """One case in a process of its own: its row, or why there is none."""
    words = [sys.executable, "-m", "benchmarks.gpu.measure", json.dumps(asdict(case))]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return {"who": case.who, "case": asdict(case), "failed": f"not done in {timeout_s:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith("ROW "):
            return dict(json.loads(line[4:]))
    memory = "out of memory" if "OutOfMemory" in done.stderr or "out of memory" in done.stderr else ""
    return {"who": case.who, "case": asdict(case), "failed": memory or (done.stderr.strip().splitlines() or ["no output"])[-1]}


def describe(row: dict[str, Any]) -> str:
    told = dict(word.split("=") for word in row["case"]["overrides"])
    return f"{row['who']:<13}{told.get('precision', ''):<14}{told.get('layout.recompute', ''):<10}mbs {told.get('layout.mbs', '')}"


def tables(rows: list[dict[str, Any]]) -> str:
    """Measured, predicted against measured, and the ratios that the goals are about."""
    lines = [
        f"{'case':<44}{'step s':>9}{'tokens/s':>11}{'TFLOP/s':>9}{'MFU':>7}{'GiB':>7}{'pred. s':>9}{'error':>8}{'pred. GiB':>10}{'error':>8}"
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"{describe(row):<44}{row['failed']}")
            continue
        p = row.get("predicted", {})
        mfu = f"{row['mfu']:.1%}" if row["mfu"] else ""
        gib = f"{row['peak_gib']:.1f}" if row["peak_gib"] else ""
        line = f"{describe(row):<44}{row['step_time_s']:>9.3f}{row['tokens_per_s']:>11,.0f}{row['model_tflops']:>9.3g}{mfu:>7}{gib:>7}"
        if "step_time_s" in p:
            line += f"{p['step_time_s']:>9.3f}{p['step_time_s'] / row['step_time_s'] - 1:>+8.1%}"
            line += f"{p['peak_gib']:>10.1f}{p['peak_gib'] / row['peak_gib'] - 1:>+8.1%}" if row["peak_gib"] else ""
        lines.append(line)
    best: dict[str, float] = {}
    for row in rows:
        if "failed" not in row:
            told = dict(word.split("=") for word in row["case"]["overrides"])
            key = f"slipway {told.get('precision', '')}" if row["who"] == "slipway" else row["who"]
            best[key] = max(best.get(key, 0.0), row["tokens_per_s"])
    first = next((k for k in best if k.startswith("slipway")), "")
    lines += ["", "best of each, against the first:"] + [
        f"  {k:<24}{v:>11,.0f} tokens/s  {v / best[first]:.2f}x" for k, v in best.items() if first
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--layers", type=int, default=0, help="0: as many as the planner says fit")
    parser.add_argument("--out", type=Path, default=Path("rows.jsonl"))
    parser.add_argument("--read", type=Path)
    options = parser.parse_args()
    if options.read:
        print(tables([json.loads(line) for line in options.read.read_text().splitlines()]))
        return
    todo = cases(options.cpu, options.gpu, options.layers or (0 if options.cpu else layers_that_fit(options.gpu)))
    predictions = [predict(case) for case in todo]
    options.out.with_suffix(".predicted.json").write_text(
        json.dumps([asdict(c) | {"predicted": p} for c, p in zip(todo, predictions, strict=True)], indent=1)
    )
    rows = []
    with options.out.open("w") as out:
        for case, predicted in zip(todo, predictions, strict=True):
            row = run(case) | {"predicted": predicted}
            rows.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()
            print(describe(row), row.get("failed") or f"{row['step_time_s']:.3f} s", file=sys.stderr, flush=True)
    print(tables(rows))


if __name__ == "__main__":
    main()
