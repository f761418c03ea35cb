"""Loss curves of one small model trained on the same text in several precisions, with several seeds each.

    python -m benchmarks.gpu.curves --data PREFIX --tokenizer FOLDER                    on a GPU: bf16, fp8_current
    python -m benchmarks.gpu.curves --cpu --data PREFIX --tokenizer FOLDER --steps 20   on a CPU: fp32, bf16

PREFIX and FOLDER are what `slipway data prepare` and `slipway data tokenizer` write. Prints what `slipway compare` says
of each precision against the first; its pictures and pages are in the output folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from slipway.launch.runs.compare import Side, write_comparison
from slipway.launch.runs.read import read_run


def overrides(precision: str, seed: int, options: argparse.Namespace) -> list[str]:
    """One run: a quarter of Llama 3.2 1B's layers at its full width on a GPU, llama3_tiny on a CPU."""
    words = [
        f"name={precision}-{seed}",
        f"run.seed={seed}",
        f"precision={precision}",
        f"run.dir={options.out}",
        f"run.max_steps={options.steps}",
        "gpus=1",
        "layout.tp=1",
    ]
    words += [
        "data=indexed",
        f"data.paths=[{options.data}]",
        f"data.tokenizer={options.tokenizer}",
        "run.checkpoint_every_n_steps=100000",
    ]
    if options.cpu:
        return [*words, "layout.mbs=1", "layout.gbs=4"]
    return [
        *words,
        f"gpu={options.gpu}",
        "model.num_layers=4",
        "layout.seq_length=4096",
        "layout.mbs=2",
        "layout.gbs=8",
        "optim.warmup_steps=50",
    ]


def slipway(*words: str) -> None:
    """``slipway WORDS`` in a process of its own."""
    subprocess.run([sys.executable, "-m", "slipway.launch.cli", *words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="toy size on the CPU")
    parser.add_argument("--gpu", default="h200", help="a name in configs/gpu")
    parser.add_argument("--data", required=True, help="prefix of .bin and .idx files")
    parser.add_argument("--tokenizer", required=True, help="folder of a tokenizer")
    parser.add_argument("--precisions", nargs="+", help="the others are compared with the first")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1234])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("curves"), help="folder of the runs")
    options = parser.parse_args()
    precisions = options.precisions or (["fp32", "bf16"] if options.cpu else ["bf16", "fp8_current"])
    recipe = "llama3_tiny" if options.cpu else "llama32_1b"
    options.out.mkdir(parents=True, exist_ok=True)
    sides = []
    for precision in precisions:
        runs = []
        for seed in options.seeds:  # one process per run: CUDA's memory and the random state start fresh
            exported = options.out / f"{precision}-{seed}.yaml"
            slipway("export", recipe, "--out", str(exported), *overrides(precision, seed, options))
            slipway("run", str(exported))
            runs.append(read_run(options.out / f"{precision}-{seed}"))
        sides.append(Side(precision, runs))
    for other in sides[1:]:
        result, _ = write_comparison(sides[0], other, options.out / f"{sides[0].name}-{other.name}")
        print(result.sentence)


if __name__ == "__main__":
    main()
