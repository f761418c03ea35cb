"""Files of other tools, read as runs: launch scripts, configurations and logs. Imports neither torch nor NeMo.

A file is data: nothing in it is executed. Each module in ``kinds`` reads one kind.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from slipway.configs import Refusal
from slipway.launch.foreign.reading import File, Kind, Reading, Request, open_file

__all__ = ["KINDS", "Reading", "Request", "is_path", "read", "recognized"]

KINDS = (
    "huggingface", "training_log", "model_config", "megatron_bridge", "nemo_recipe", "nemo_framework",
    "megatron_script", "argument_file",
)  # fmt: skip
"""The modules of ``kinds``, in the order in which they are asked whether they recognize a file."""

_SUFFIXES = (".sh", ".sbatch", ".slurm", ".json", ".yaml", ".yml", ".toml", ".log", ".txt", ".py", ".args")


def is_path(name: str) -> bool:
    """Whether NAME on a command line is a file, a folder or a function, and not a recipe of ours."""
    return "/" in name or name.endswith(_SUFFIXES) or ":" in name or Path(name).exists()


def read(path: Path, request: Request) -> Reading:
    """The run that a file, or a function, describes.

    Raises:
        Refusal: no such file, of a kind that is not known, incomplete, or contradictory.
    """
    if ":" in str(path) and not path.exists():
        from slipway.launch.foreign.kinds import megatron_bridge, nemo_recipe

        if megatron_bridge.is_target(str(path)):
            return megatron_bridge.read_target(str(path), request)
        if nemo_recipe.is_target(str(path)):
            return nemo_recipe.read_target(str(path), request)
    file = open_file(path)
    return kind_of(file).read(file, request)


def recognized(path: Path) -> bool:
    """Whether a file is of a kind that can be read."""
    try:
        return _kind_of(open_file(path)) is not None
    except Refusal:
        return False


def _kind_of(file: File) -> Kind | None:
    for name in KINDS:
        kind = cast(Kind, importlib.import_module(f"slipway.launch.foreign.kinds.{name}"))
        if kind.recognizes(file):
            return kind
    return None


def kind_of(file: File) -> Kind:
    """The kind of a file.

    Raises:
        Refusal: none recognizes it.
    """
    if kind := _kind_of(file):
        return kind
    raise Refusal(
        f"{file.path} is of no kind that can be read",
        "Give a script, configuration or log that docs/how-to/check-what-you-have.md lists.",
    )
