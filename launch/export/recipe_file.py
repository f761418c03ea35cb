"""A recipe as YAML text, and back.

NeMo-Run can write a recipe from its command line, but cannot read what it wrote.
"""

from __future__ import annotations

import importlib
import re
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from slipway.configs import Refusal


def _represent_enum(dumper: yaml.SafeDumper, member: Enum) -> yaml.Node:
    kind = type(member)
    return dumper.represent_dict({"_target_": f"{kind.__module__}.{kind.__qualname__}.{member.name}", "_call_": False})


def dump(recipe: Any) -> str:
    """A fiddle config as YAML text."""
    from nemo_run.core.serialization.yaml import YamlSerializer

    yaml.SafeDumper.add_multi_representer(Enum, _represent_enum)  # NeMo-Run's own represent functions and dtypes
    return str(YamlSerializer().serialize(recipe))


def load(path: Path) -> Any:
    """The recipe in a file that :func:`dump` wrote.

    Raises:
        Refusal: there is no such file, or it holds no recipe.
    """
    if not path.is_file():
        raise Refusal(f"there is no recipe file {path}")
    try:
        tree = yaml.safe_load(path.read_text())
        if not isinstance(tree, dict) or "_target_" not in tree:
            raise ValueError("it names no _target_")
        return rebuilt(tree)
    except (ValueError, TypeError, ImportError, AttributeError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refusal(
            f"{path} is not an exported recipe: {first}", "Write one with: slipway export NAME --out FILE.yaml"
        ) from None


def rebuilt(tree: dict[str, Any]) -> Any:
    """The recipe that a tree of YAML describes.

    Raises:
        ValueError, TypeError, ImportError, AttributeError: a class or argument in it that is not there.
    """
    return _rebuild(tree, {})


def _rebuild(node: Any, seen: dict[int, Any]) -> Any:
    """A node of the YAML as NeMo-Run's Config, Partial or a plain value. A node that occurs twice is one object."""
    import nemo_run as run

    if isinstance(node, list):
        return [_rebuild(item, seen) for item in node]
    if not isinstance(node, dict):
        return node
    if id(node) in seen:
        return seen[id(node)]
    values = {k: _rebuild(v, seen) for k, v in node.items() if k not in ("_target_", "_partial_", "_call_")}
    if "_target_" not in node:
        built: Any = values
    else:
        target = _target(node["_target_"])
        kind = run.Partial if node.get("_partial_") else run.Config
        built = kind(target, **values) if node.get("_call_", True) else target
    seen[id(node)] = built
    return built


# What a recipe is made of. A file may name nothing else, because building a recipe calls what it names.
_ALLOWED = (
    "slipway.recipes.",
    "nemo.lightning.",
    "nemo.collections.llm.",
    "nemo.collections.common.tokenizers.",
    "nemo.utils.exp_manager.TimingCallback",
    "megatron.core.",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
    "lightning.pytorch.plugins.",
    "lightning.pytorch.profilers.",
    "lightning.fabric.plugins.",
    "torch.nn.",
    "torch.optim.",
    "transformer_engine.",
)
_DTYPE = re.compile(r"torch\.(?:b?float|int|uint|complex)\d[\w]*|torch\.(?:bool|half|double|long|short)")


def _allowed(dotted: str) -> bool:
    if _DTYPE.fullmatch(dotted):
        return True
    return dotted.startswith(_ALLOWED) and not any(part.startswith("_") for part in dotted.split("."))


def _target(dotted: Any) -> Any:
    """The class, function or constant that a dotted path names.

    Raises:
        Refusal: it is none that recipes are made of. Nothing is imported for it.
    """
    if not isinstance(dotted, str) or not _allowed(dotted):
        raise _foreign(dotted)
    found = _named(dotted)
    home = getattr(found, "__module__", None) or type(found).__module__
    if not _DTYPE.fullmatch(dotted) and not f"{home}.".startswith(tuple(a.split(".")[0] + "." for a in _ALLOWED)):
        raise _foreign(dotted)  # what one of these packages has imported from elsewhere
    return found


def _foreign(dotted: Any) -> Refusal:
    return Refusal(
        f"the recipe's file names _target_: {str(dotted)[:200]}, which no recipe is made of, and it was not called",
        "A recipe names classes and functions of slipway.recipes, NeMo, Megatron-Core and Lightning only; "
        "in Python, nemo_run.run starts any other.",
    )


def _named(dotted: str) -> Any:
    parts = dotted.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ImportError(f"{dotted} names nothing that can be imported")
