"""``make quickstart-finetune``: teach the toy of the quickstart a task, with the commands that a user would type.

The toy that ``make quickstart`` pretrained on source code is exported for Hugging Face, imported again as a base, and
LoRA-tuned with tensor parallelism. It learns to say whether a name of Python's standard library is a class, a function
or a constant, and is asked about names that it has not seen.
"""

from __future__ import annotations

import re
import shutil
import sys
import time

from slipway.launch.cli.quickstart import FOLDER as PRETRAINED
from slipway.launch.cli.quickstart import run
from slipway.launch.data.names import ANSWERS, write_instructions

FOLDER = PRETRAINED.with_name("quickstart-finetune")
STEPS, WARMUP = 60, 5
MOST_NAMES = 1500  # of the training set
LEAST_RIGHT = 0.5  # of the held-out names; guessing is right for a third


def main() -> None:
    """Export, import, ask, finetune, export, and ask again."""
    start = time.monotonic()
    run_folder = PRETRAINED / "llama3_tiny"
    if not (run_folder / "checkpoints").is_dir():
        sys.exit(f"quickstart-finetune: {run_folder} holds no run: make quickstart trains it")
    shutil.rmtree(FOLDER, ignore_errors=True)
    data, base, hf = FOLDER / "instructions", str(FOLDER / "base"), str(FOLDER / "hf")
    training, held_out = write_instructions(data, MOST_NAMES)
    print(f"{data}: {training:,} names of Python's standard library to learn from, {held_out} others to ask about")

    def right(source: str) -> float:
        """The share of held-out names that are answered right."""
        asked = str(data / "validation.jsonl")
        printed = run("slipway", "generate", source, "--examples", asked, "--max-tokens", "4")
        found = re.search(r"(\d+) of (\d+) answers as in the file", printed)
        assert found, printed
        return int(found[1]) / int(found[2])

    run("slipway", "weights", "export", str(run_folder), "--out", hf)
    run("slipway", "weights", "import", hf, "--out", base)
    run("slipway", "data", "preview", str(data), "--base", base, "--seq-length", "512")
    before = right(base)
    recipe = (
        f"llama3_tiny(dir={FOLDER},name=names,base={base},data={data},tp=2,seq_length=512,gbs=4,lora_rank=16,"
        f"lora_alpha=16,max_steps={STEPS},warmup_steps={WARMUP},max_lr=0.005,val_check_interval={STEPS // 2},"
        "limit_val_batches=1)"
    )
    run("nemo", "llm", "finetune", "--factory", recipe, "-y", show="Training epoch")
    tuned = str(FOLDER / "names")
    run("slipway", "report", tuned)
    run("slipway", "weights", "export", tuned, "--adapter", "peft", "--out", str(FOLDER / "adapter"))
    run("slipway", "weights", "export", tuned, "--adapter", "merged", "--out", str(FOLDER / "merged"))
    after = right(str(FOLDER / "merged"))
    seconds = time.monotonic() - start
    print(
        f"\nquickstart-finetune: {STEPS} steps of LoRA with TP2 in {seconds:.0f} s; of {held_out} held-out names "
        f"{before:.0%} right before and {after:.0%} after, where guessing gives {1 / len(ANSWERS):.0%}"
    )
    if after < LEAST_RIGHT or before >= after:
        sys.exit("quickstart-finetune: too few answers are right: the adapter learned too little")


if __name__ == "__main__":
    main()
