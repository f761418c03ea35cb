"""``make quickstart``: train a toy on real text on this machine's CPU, with the commands that a user would type.

Each command is printed before it runs. The text is the source of Python's standard library, which every machine has.
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
PACKAGES = (
    "asyncio collections concurrent ctypes dbm email encodings html http importlib json logging multiprocessing "
    "unittest urllib xml"
).split()
STEPS, RESUMED_STEPS = 80, 100  # of the first start, and of the run after its resume
CHECKPOINT_EVERY = 40  # steps
LEAST_GAIN = 1.0  # nats per token below the unigram entropy: a model that learned no context gains nothing
LOG_LINES_SHOWN = 40  # of a command that failed


def run(*words: str, show: str = "") -> str:
    """Print a command, run it, return its output. It is printed as it comes (only lines with ``show``, if given)."""
    command = " ".join(f"'{w}'" if any(c in w for c in " ()[]") else w for w in words)
    print(f"\n$ {command}", flush=True)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    }
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout is not None
    printed: list[str] = []
    for line in process.stdout:
        printed.append(line)
        if not show or show in line:
            print(line, end="", flush=True)
    if process.wait():
        log = "".join(printed[-LOG_LINES_SHOWN:])
        sys.exit(f"{log}\nquickstart: {words[0]} {words[1]} failed with exit code {process.returncode}")
    return "".join(printed)


def main() -> None:
    """Prepare the text, train, resume, report, and compare the loss with the unigram entropy."""
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
        recipe = (
            f"llama3_tiny(dir={FOLDER},name=llama3_tiny,data={corpus},tokenizer={tokenizer},tp=2,"
            f"max_steps={steps},checkpoint_every={CHECKPOINT_EVERY})"
        )
        run("nemo", "llm", "pretrain", "--factory", recipe, "-y", show="Training epoch")

    train(STEPS)
    print(f"\nresuming for {RESUMED_STEPS - STEPS} more steps", flush=True)
    train(RESUMED_STEPS)
    run("slipway", "report", str(FOLDER / "llama3_tiny"), "--entropy", f"{entropy}")
    final = json.loads((FOLDER / "llama3_tiny" / "report.json").read_text())["final_loss"]
    below = entropy - final
    seconds = time.monotonic() - start
    print(
        f"\nquickstart: {RESUMED_STEPS} steps of llama3_tiny with TP2 on real text in {seconds:.0f} s; "
        f"loss {final:.2f}, {below:.2f} below the unigram entropy of {entropy:.2f} nats per token"
    )
    if below < LEAST_GAIN:
        sys.exit("quickstart: the loss did not fall well below the unigram entropy: the model learned too little")


if __name__ == "__main__":
    main()
