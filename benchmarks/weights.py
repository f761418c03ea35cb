"""How fast weights are converted, and how much memory that takes, for random models of real sizes.

Each conversion is a process of its own. The files are written to --folder, which needs three times the largest model,
and removed. What was just written is read from the page cache where that is large enough.

python -m benchmarks.weights [CASE...] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from slipway import configs
from slipway.configs import Model
from slipway.launch.weights.config import config_of
from slipway.launch.weights.family import family_of
from slipway.launch.weights.rules import pieces


@dataclass(frozen=True)
class Case:
    """A model of configs/model with fewer layers, so that it fits a laptop's disk."""

    model: str
    layers: int = 0  # 0: all

    def facts(self) -> Model:
        model = configs.model(self.model)
        return replace(model, num_layers=self.layers or model.num_layers)


CASES = {
    "llama32_1b": Case("llama32_1b"),
    "llama31_8b-8-layers": Case("llama31_8b", 8),
    "qwen3_30b_a3b-3-layers": Case("qwen3_30b_a3b", 3),
    "llama31_405b-1-layer": Case("llama31_405b", 1),
}


def write_random(model: Model, folder: Path) -> None:
    """Write a model of random bf16 weights as transformers would."""
    import torch

    from slipway.launch.weights.safetensors import Planned, Writer

    family = family_of(model)
    folder.mkdir(parents=True)
    parts = [part for piece in pieces(family.rules(model), model) for part in piece.parts]
    with Writer(folder, [Planned(part.name, torch.bfloat16, part.shape) for part in parts]) as writer:
        for part in parts:
            writer.write(part.name, torch.empty(part.shape, dtype=torch.bfloat16).normal_())
    config_of(family, model, dtype="bfloat16").to_json_file(folder / "config.json")


def convert(*words: str) -> dict[str, float]:
    """What ``slipway weights`` prints of one conversion, in a process of its own."""
    program = Path(sys.executable).parent / "slipway"
    done = subprocess.run([program, "weights", *words, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def idle_gib() -> float:
    """The memory of a process that has imported what a conversion needs, and converts nothing."""
    program = "import torch, transformers, resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout) / 2**20


def largest_gb(model: Model) -> float:
    """The largest tensor of Megatron-Core's, in bf16."""
    return max(piece.elements for piece in pieces(family_of(model).rules(model), model)) * 2 / 1e9


def measure(name: str, folder: Path) -> None:
    """Print a row of the table."""
    model = CASES[name].facts()
    source, base, back = (str(folder / part) for part in ("hugging_face", "base", "back"))
    write_random(model, Path(source))
    os.sync()
    came = convert("import", source, "--out", base)
    os.sync()
    went = convert("export", base, "--out", back)
    files = [file.name for file in Path(source).glob("*.safetensors*")]
    same = sorted(filecmp.cmpfiles(source, back, files, shallow=False)[0]) == sorted(files)
    cells = [
        name,
        f"{came['tensors']:,}",
        f"{came['bytes'] / 1e9:.2f}",
        f"{largest_gb(model):.2f}",
        *(f"{done['seconds']:.1f} s, {done['peak_rss_gib']:.2f} GiB" for done in (came, went)),
        "yes" if same else "NO",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="a folder with free space")
    given = parser.parse_args()
    print(f"A process that converts nothing: {idle_gib():.2f} GiB.\n")
    print("| model | tensors | GB | largest tensor, GB | import | export | same bytes back |")
    print("|---|---|---|---|---|---|---|")
    for name in given.cases:
        work = given.folder / "slipway-weights"
        shutil.rmtree(work, ignore_errors=True)
        try:
            measure(name, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
