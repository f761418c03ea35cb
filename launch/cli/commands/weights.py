"""``slipway weights``: a run's newest checkpoint for Hugging Face transformers."""

from __future__ import annotations

from pathlib import Path

import click

from slipway.launch.cli.answer import Answer, Section, Written, argument, command
from slipway.launch.cli.nemo import quiet, require_nemo


@command(Section.RESULTS, json=False)
@argument("run", "A run's folder.", type=Path)
@click.option("--out", type=Path, required=True, metavar="FOLDER", help="The folder to write; it must not exist yet.")
@click.option("--dtype", default="bfloat16", show_default=True, help="bfloat16 or float32.")
def weights(run: Path, out: Path, dtype: str) -> Answer:
    """Convert the newest checkpoint of a run for Hugging Face."""
    require_nemo("weights")
    with quiet():
        from slipway.launch.weights.export import export

        export(str(run), str(out), dtype)
    return Written(out)
