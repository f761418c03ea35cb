"""The files of a repository that describe runs."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from slipway.configs import Refusal
from slipway.configs.files import OWN_FOLDER, ROOT
from slipway.launch.foreign.shell.launcher import SCRIPT_SUFFIXES

_SUFFIXES = (*SCRIPT_SUFFIXES, ".yaml", ".yml", ".toml", ".args")
_LEFT_OUT = (".git", ".venv", "node_modules", "__pycache__", "build")
_RECIPE = re.compile(r"^\s*- override /model:", re.MULTILINE)


def found_in(paths: Sequence[Path]) -> list[tuple[Path, bool]]:
    """Every file that may describe a run, and whether it was named itself, each once.

    Raises:
        Refusal: a path that is not there.
    """
    found: dict[Path, bool] = {}
    for path in paths:
        if path.is_dir():
            for file in sorted(_below(path)):
                found.setdefault(file, False)
        elif path.is_file():
            found[path] = True
        else:
            raise Refusal(f"there is no file or folder {path}", "Give files and folders of a checkout.")
    return list(found.items())


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        yield from (Path(root) / name for name in names if name.endswith(_SUFFIXES))


def is_recipe(path: Path) -> bool:
    """Whether a file is a recipe of Slipway's kind: RECIPE/NAME.yaml that chooses a model."""
    return path.parent.name == "recipe" and path.suffix == ".yaml" and bool(_RECIPE.search(path.read_text()))


@contextlib.contextmanager
def own_folder_of(path: Path) -> Iterator[None]:
    """The files beside a recipe are its own: its model and optimizer come from there."""
    folder, before = path.resolve().parents[1], os.environ.get(OWN_FOLDER)
    if folder == ROOT.resolve():
        yield
        return
    os.environ[OWN_FOLDER] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(OWN_FOLDER)
        if before is not None:
            os.environ[OWN_FOLDER] = before
