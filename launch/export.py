"""A recipe as one YAML file, and back: NeMo-Run's own command-line export cannot be read by its own import."""

from __future__ import annotations

import importlib
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from slipway import configs, planner
from slipway.configs import Refusal


def built_recipe(name: str, overrides: list[str]) -> Any:
    """The ``run.Partial`` of a recipe under overrides, complete and legal: for this machine's CPU if it is a toy and no GPU is here."""
    from slipway.recipes import build as builder
    from slipway.recipes.factory import check_data, gpu_here, trains_on_cpu

    spec = planner.complete(configs.load(name, overrides))
    planner.require_legal(spec)
    check_data(spec)
    return builder.build(spec, cpu=trains_on_cpu(spec) and not gpu_here())


def _represent_enum(dumper: yaml.SafeDumper, member: Enum) -> yaml.Node:
    kind = type(member)
    return dumper.represent_dict({"_target_": f"{kind.__module__}.{kind.__qualname__}.{member.name}", "_call_": False})


def dump(recipe: Any) -> str:
    """A fiddle config as YAML text."""
    from nemo_run.core.serialization.yaml import YamlSerializer

    yaml.SafeDumper.add_multi_representer(
        Enum, _represent_enum
    )  # beside NeMo-Run's own, which know functions and dtypes
    return str(YamlSerializer().serialize(recipe))


def load(path: Path) -> Any:
    """The recipe that a file of :func:`dump` holds.

    Raises:
        Refusal: no file, or one that is not such a recipe.
    """
    if not path.is_file():
        raise Refusal(f"there is no recipe file {path}")
    try:
        tree = yaml.safe_load(path.read_text())
        if not isinstance(tree, dict) or "_target_" not in tree:
            raise ValueError("it names no _target_")
        return _rebuild(tree, {})
    except (ValueError, TypeError, ImportError, AttributeError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refusal(
            f"{path} is not an exported recipe: {first}", "Write one with: slipway export NAME --out FILE.yaml"
        ) from None


def _rebuild(node: Any, seen: dict[int, Any]) -> Any:
    """A node of the YAML as NeMo-Run's Config, Partial or plain value; a node that is shared stays shared."""
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


def _target(dotted: str) -> Any:
    """The class, function or constant that a dotted path names."""
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


def train(path: Path) -> None:
    """Run an exported recipe in this process; Lightning starts its other ranks by the same command line.

    Raises:
        Refusal: no such recipe, or one that needs a GPU where there is none.
    """
    recipe = load(path)
    from slipway.recipes.factory import gpu_here

    if recipe.trainer.accelerator == "gpu" and not gpu_here():
        raise Refusal(
            f"{path} needs {recipe.trainer.num_nodes} x {recipe.trainer.devices} GPUs and this machine has none"
        )
    import nemo_run

    nemo_run.run(recipe, direct=True)
