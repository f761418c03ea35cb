"""``make quickstart``: real text to a trained toy on this machine's CPU, by the commands a user would type, each printed first.

The text is the source of Python's own standard library, which is on every machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

FOLDER = Path("runs/quickstart")
PACKAGES = "asyncio collections concurrent ctypes dbm email encodings html http importlib json logging multiprocessing unittest urllib xml".split()
STEPS, RESUMED_STEPS = 200, 220


def run(*words: str, show: str = "") -> str:
    """Run one command, printed first; its output passes through as it comes (only lines with ``show``, if given)."""
    command = " ".join(f"'{w}'" if any(c in w for c in " ()[]") else w for w in words)
    print(f"\n$ {command}", flush=True)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    }
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout is not None
    kept: list[str] = []
    for line in process.stdout:
        kept.append(line)
        if not show or show in line:
            print(line, end="", flush=True)
    if process.wait():
        sys.exit(f"{''.join(kept[-40:])}\nquickstart: {words[0]} {words[1]} failed with exit code {process.returncode}")
    return "".join(kept)


def main() -> None:
    start = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    library = Path(sysconfig.get_paths()["stdlib"])
    text = [str(library / p) for p in PACKAGES]
    tokenizer, corpus = str(FOLDER / "tokenizer"), str(FOLDER / "corpus")
    run("slipway", "data", "tokenizer", *text, "--pattern", "*.py", "--vocab-size", "2048", "--out", tokenizer)
    prepared = run("slipway", "data", "prepare", *text, "--pattern", "*.py", "--tokenizer", tokenizer, "--out", corpus)
    entropy = float(prepared.split("unigram entropy")[1].split()[0])

    def train(steps: int) -> None:
        recipe = f"llama3_tiny(dir={FOLDER},name=llama3_tiny,data={corpus},tokenizer={tokenizer},tp=2,max_steps={steps},checkpoint_every=100)"
        run("nemo", "llm", "pretrain", "--factory", recipe, "-y", show="Training epoch")

    train(STEPS)
    print(f"\nresuming for {RESUMED_STEPS - STEPS} more steps", flush=True)
    train(RESUMED_STEPS)
    run("slipway", "report", str(FOLDER / "llama3_tiny"), "--entropy", f"{entropy}")
    final = json.loads((FOLDER / "llama3_tiny" / "report.json").read_text())["final_loss"]
    below = entropy - final
    print(
        f"\nquickstart: {RESUMED_STEPS} steps of llama3_tiny with TP2 on real text in {time.monotonic() - start:.0f} s; "
        f"loss {final:.2f}, {below:.2f} below the unigram entropy of {entropy:.2f} nats per token"
    )
    if below < 1.0:
        sys.exit(
            "quickstart: the loss did not fall well below the unigram entropy: the model learned less than it should"
        )


if __name__ == "__main__":
    main()
