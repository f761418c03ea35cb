"""``slipway run``: an exported recipe, trained on this machine."""

from __future__ import annotations

from pathlib import Path

from slipway.launch.cli.answer import Answer, Section, Written, argument, command
from slipway.launch.cli.nemo import require_nemo


@command(Section.RUNNING, json=False)
@argument("file", "A recipe that slipway export wrote.", type=Path)
def run(file: Path) -> Answer:
    """Train an exported recipe on this machine, with all its ranks."""
    require_nemo("run")
    from slipway.launch.export import train

    train(file)
    return Written()
