"""A recipe as one YAML file, and back: NeMo-Run's own command-line export cannot be read by its own import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import configs
import planner
from configs import Refusal


def built_recipe(name: str, overrides: list[str], *, cpu: bool = False) -> Any:
    """The ``run.Partial`` of a recipe under overrides, complete and legal."""
    from recipes import builder

    spec = planner.complete(configs.load(name, overrides))
    planner.require_legal(spec)
    return builder.build(spec, cpu=cpu)


def dump(recipe: Any) -> str:
    """A fiddle config as YAML text."""
    from nemo_run.core.serialization.yaml import YamlSerializer

    return str(YamlSerializer().serialize(recipe))


def load(path: Path) -> Any:
    """The recipe that a file of :func:`dump` holds.

    Raises:
        Refusal: no file, or one that is not such a recipe.
    """
    if not path.is_file():
        raise Refusal(f"there is no recipe file {path}")
    from nemo_run.core.serialization.yaml import YamlSerializer

    try:
        return YamlSerializer().deserialize(path.read_text())
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refusal(f"{path} is not an exported recipe: {first}", "Write one with: slipway export NAME --out FILE.yaml") from None


def export_recipe(name: str, overrides: list[str], out: Path) -> None:
    """Write the full recipe; beside, then rename."""
    text = dump(built_recipe(name, overrides))
    temporary = out.with_name(out.name + ".tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(out)
    except OSError as error:
        raise Refusal(f"{out} cannot be written: {error.strerror}") from None
