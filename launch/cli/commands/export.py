"""``slipway export``: a recipe as one YAML file."""

from __future__ import annotations

from pathlib import Path

import click

from slipway.launch.cli.answer import OUT_PATH, Answer, Section, Written, command, recipe_arguments
from slipway.launch.cli.nemo import quiet, require_nemo


@command(Section.RUNNING, json=False)
@recipe_arguments
@click.option("--out", type=OUT_PATH, required=True, metavar="FILE", help="The YAML file to write.")
def export(name: str, overrides: tuple[str, ...], out: Path) -> Answer:
    """Write a complete recipe as YAML, for slipway run."""
    require_nemo("export")
    with quiet():
        from slipway.launch.export import export_recipe

        export_recipe(name, list(overrides), out)
    return Written(out)
