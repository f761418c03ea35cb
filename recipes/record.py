"""What a run keeps about itself: ``slipway/recipe.json`` beside its logs, and the check that a directory holds this run and no other."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from configs import Refusal

RECORD = "slipway/recipe.json"  # in a folder: on resume NeMo moves the files of a run into run_N
_IDENTITY = ("model", "data.kind", "data.paths", "data.tokenizer")


def _pick(record: dict[str, Any], dotted: str) -> Any:
    value: Any = record
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def check_run_dir(run_dir: Path, record: dict[str, Any]) -> None:
    """Refuse a directory that holds another model, tokenizer or data, or that cannot be written.

    Raises:
        Refusal: naming what differs.
    """
    path = run_dir / RECORD
    if path.is_file():
        try:
            held = json.loads(path.read_text())["spec"]
        except (ValueError, KeyError):
            raise Refusal(f"{path} cannot be read", "Move it away, or give another dir or name.") from None
        for key in _IDENTITY:
            ours, theirs = _pick(record, key), _pick(held, key)
            if ours != theirs:
                if key == "model":
                    ours, theirs = ours["name"], theirs["name"]
                    if ours == theirs:
                        ours, theirs = f"another {ours}", f"a {theirs} of other sizes"
                raise Refusal(
                    f"{run_dir} already holds a run with {key} = {theirs}, and this one has {key} = {ours}",
                    "Give another run.name or run.dir, or move the old run away.",
                )
    parent = run_dir
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise Refusal(f"{parent} cannot be written", "Give a run.dir that you may write to.")


class RunRecord(pl.Callback):
    """Writes the resolved recipe into the run's directory before the first step."""

    def __init__(self, run_dir: str, record: dict[str, Any]) -> None:
        self.run_dir = Path(run_dir)
        self.record = record

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        check_run_dir(self.run_dir, self.record)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_rank:
            return
        path = self.run_dir / RECORD
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        held = {"spec": self.record, "world_size": trainer.world_size, "device": str(pl_module.device)}
        temporary.write_text(json.dumps(held, indent=1))
        temporary.replace(path)
