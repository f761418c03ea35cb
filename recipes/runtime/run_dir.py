"""The check that a directory holds this run and no other. Imports neither torch nor NeMo."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from slipway.configs import Refusal, Spec
from slipway.configs.files import parse_json
from slipway.configs.load import record_of, spec_from_record
from slipway.recipes.runtime.run_files import RECORD

_IDENTITY = ("kind", "paths", "tokenizer")  # of the data


def check_run_dir(run_dir: Path, given: Spec) -> None:
    """Refuse a directory that holds another model, tokenizer or data, or that cannot be written.

    Raises:
        Refusal: naming what differs.
    """
    path = run_dir / RECORD
    if path.is_file():
        try:
            ours, theirs = record_of(given), parse_json(path)["spec"]
            # a key that an earlier version did not write is not a difference
            held = spec_from_record(ours | {"model": theirs["model"], "data": ours["data"] | theirs["data"]})
        except (KeyError, TypeError):
            raise Refusal(f"{path} cannot be read", "Move it away, or give another dir or name.") from None
        pairs = [(f"data.{k}", getattr(given.data, k), getattr(held.data, k)) for k in _IDENTITY]
        if replace(given.model, source="") != replace(held.model, source=""):
            new, old = given.model.name, held.model.name
            pairs.insert(
                0, ("model", f"another {new}", f"a {old} of other sizes") if new == old else ("model", new, old)
            )
        for key, new, old in pairs:
            if new != old:
                raise Refusal(
                    f"{run_dir} already holds a run with {key} = {old}, and this one has {key} = {new}",
                    "Give another name= or run.dir=, or move the old run away.",
                )
    parent = run_dir
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise Refusal(f"{parent} cannot be written", "Give a run.dir that you may write to.")
