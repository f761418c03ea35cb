"""Llama-3-8B's layers on one GPU: our recipe in every precision, recompute and micro-batch, and its peers.

    python -m benchmarks.gpu --out rows.jsonl               on a Hopper GPU; one process per case, one line per row
    python -m benchmarks.gpu --out rows.jsonl --minutes 9   what fits into nine minutes; run again, it continues
    python -m benchmarks.gpu --predict --gpu h200           the planner's prediction of every case, without a GPU
    python -m benchmarks.gpu --cpu --out rows.jsonl         the same scripts at toy size, to prove them without a GPU
    python -m benchmarks.gpu --read rows.jsonl              print the tables again

Every prediction is written before the first case runs. The cases that answer most come first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import gpu_cases, layers_that_fit, predict, toy_cases
from benchmarks.gpu.measure import ROW, Case
from benchmarks.gpu.tables import describe, predicted_table, tables
from slipway import configs
from slipway.launch.doctor.commands import printed_by

CASE_TIMEOUT_S = 240  # importing, compiling and ten steps of at most three predicted seconds, with room


class Process:
    """One case's process. It imports while another case is measured and uses the GPU only in :meth:`measure`."""

    def __init__(self, case: Case) -> None:
        from slipway.launch.executors import environment

        self.case = case
        words = [sys.executable, "-m", "benchmarks.gpu.measure", json.dumps(asdict(case)), "--wait"]
        env = environment(case.spec) | os.environ  # that of a launched run, for the peers too
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)

    def measure(self, timeout_s: float) -> dict[str, Any]:
        """The case's row, or the reason why there is none under ``failed``."""
        try:
            stdout, stderr = self._process.communicate("go\n", timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.stop()
            return self._failed(f"not finished in {timeout_s:.0f} s")
        for line in stdout.splitlines():
            if line.startswith(ROW):
                return dict(json.loads(line.removeprefix(ROW)))
        if "out of memory" in stderr.lower():
            return self._failed("out of memory")
        return self._failed((stderr.strip().splitlines() or ["no output"])[-1])

    def _failed(self, why: str) -> dict[str, Any]:
        return {"who": self.case.who, "case": asdict(self.case), "failed": why}

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def name_of_gpu() -> str:
    """The GPU of this machine, by its name in configs/gpu.

    Raises:
        Refusal: there is none, or its peak is not known.
    """
    listed = printed_by("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if not listed:
        raise configs.Refusal(
            "this machine has no GPU", "Prove the scripts with --cpu, or name a GPU for --predict with --gpu."
        )
    device = listed.splitlines()[0]
    gpu = configs.gpu_of_device(device)
    if gpu is None:
        raise configs.Refusal(
            f"{device} is not in configs/gpu: its peak is not known", "Add a file for it, or name a GPU with --gpu."
        )
    return gpu.name


def run_all(todo: list[Case], predictions: list[dict[str, Any]], out: Path, minutes: float) -> list[dict[str, Any]]:
    """Measure what ``out`` does not have yet, until the time is used up; each row is written at once."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    measured = [row["case"] for row in rows]
    left = [(c, p) for c, p in zip(todo, predictions, strict=True) if asdict(c) not in measured]
    end = time.monotonic() + 60 * minutes
    waiting = Process(left[0][0]) if left else None
    with out.open("a") as file:
        for i, (_, predicted) in enumerate(left):
            process, waiting = waiting, Process(left[i + 1][0]) if i + 1 < len(left) else None
            assert process is not None
            remaining_s = end - time.monotonic()
            if remaining_s <= 0:
                process.stop()
                print(f"{len(left) - i} of {len(todo)} cases are left; run the command again", file=sys.stderr)
                break
            row = process.measure(min(CASE_TIMEOUT_S, remaining_s))
            if "failed" in row and remaining_s < CASE_TIMEOUT_S:
                continue  # stopped because the time was used up: it says nothing about the case
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
    parser.add_argument("--cpu", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--gpu", default="", help="a name in configs/gpu; default: this machine's own")
    parser.add_argument("--predict", action="store_true", help="print the predictions and measure nothing")
    parser.add_argument("--out", type=Path, default=Path("rows.jsonl"), help="rows are appended to this file")
    parser.add_argument("--minutes", type=float, default=24 * 60, help="stop after this time")
    parser.add_argument("--read", type=Path, help="print the tables of this file and measure nothing")
    options = parser.parse_args()
    if options.read:
        print(tables([json.loads(line) for line in options.read.read_text().splitlines()]))
        return
    gpu = "" if options.cpu else options.gpu or name_of_gpu()
    todo = toy_cases() if options.cpu else gpu_cases(gpu, layers_that_fit(gpu))
    predictions = [predict(case) for case in todo]
    planned = [{"who": c.who, "case": asdict(c), "predicted": p} for c, p in zip(todo, predictions, strict=True)]
    if options.predict:
        print(predicted_table([row for row in planned if row["predicted"]]))
        return
    options.out.with_suffix(".predicted.json").write_text(json.dumps(planned, indent=1))
    print(tables(run_all(todo, predictions, options.out, options.minutes)))


if __name__ == "__main__":
    try:
        main()
    except configs.Refusal as refusal:
        print(refusal.sentence(), file=sys.stderr)
        sys.exit(2)
