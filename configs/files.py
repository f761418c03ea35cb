"""The YAML files of configs/: a folder for each group, a file for each choice.

Users keep files of their own in the same folders below the one that the environment variable SLIPWAY_CONFIGS names, or
below ./slipway; a site may keep its clusters in the folder that SLIPWAY_CLUSTERS names. Their files come before ours.
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from slipway.configs.errors import Refusal, nearest

ROOT = Path(__file__).parent
GROUPS = ("model", "gpu", "precision", "optim", "data", "task", "cluster")
SITE_FOLDER = "SLIPWAY_CLUSTERS"
"""Environment variable: a folder of cluster files, which come before those of configs/cluster."""

OWN_FOLDER = "SLIPWAY_CONFIGS"
"""Environment variable: a folder with files of the user's in model/, recipe/ and the other folders of configs."""
HERE = Path("slipway")
"""The user's folder where the variable is not set."""

_FAST_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_FAST_LOADER):
    """YAML with the numbers that people expect: 1e-5 is a number; 12:00:00 and 2026-01-31 are text."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._written: dict[int, list[Any]] = {}

    yaml_implicit_resolvers = {
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("timestamp", "int", "float")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """As SafeLoader's; a key that stands there twice is an error, because only one of its values would count."""
        written = self._written.setdefault(id(node), [key.value for key, _ in node.value])  # before keys are merged in
        twice = next((name for i, name in enumerate(written) if name in written[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|nan))$"
    ),
    list("-+.0123456789"),
)


def parse_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        Refusal: the file is not YAML or does not hold a mapping.
    """
    try:
        content = yaml.load(_text(path), Loader=_Loader)
    except RecursionError:
        raise Refusal(f"{path} is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise Refusal(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise Refusal(f"{path} does not hold a mapping of keys to values")
    return content


def _text(path: Path) -> str:
    """The content of a text file.

    Raises:
        Refusal: it cannot be read, or is not text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Refusal(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Refusal(f"{path} is not text in UTF-8") from None


def parse_json(path: Path, what: str = "") -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        what: what a refusal calls the file's content, for example "a run's record".

    Raises:
        Refusal: the file cannot be read, or does not hold an object.
    """
    return json_object(_text(path), str(path), what)


def json_object(text: str, where: str, what: str = "") -> dict[str, Any]:
    """The object that JSON text holds.

    Raises:
        Refusal: it is not JSON, or is nested too deeply, or not an object.
    """
    wanted = what or "a JSON object"
    try:
        content = json.loads(text)
    except RecursionError:
        raise Refusal(f"{where} cannot be read: it is nested too deeply to be {wanted}") from None
    except ValueError as error:
        raise Refusal(f"{where} cannot be read: it is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise Refusal(f"{where} cannot be read: it holds {type(content).__name__}, not {wanted}")
    return content


def own_folder() -> Path | None:
    """The user's folder of configuration files; None where there is none.

    Raises:
        Refusal: SLIPWAY_CONFIGS names something else.
    """
    if named := os.environ.get(OWN_FOLDER):
        if not (folder := Path(named)).is_dir():
            raise Refusal(f"{OWN_FOLDER}={named} is not a folder", f"Make it, or unset {OWN_FOLDER}.")
        return folder
    return HERE if HERE.is_dir() and not (HERE / "__init__.py").exists() else None  # a Python package is not meant


def _folders(group: str) -> list[Path]:
    """Where the files of a group are sought, the user's own folders first."""
    site = os.environ.get(SITE_FOLDER) if group == "cluster" else None
    own = own_folder()
    return [*([Path(site)] if site else []), *([own / group] if own else []), ROOT / group]


def choices(group: str) -> list[str]:
    """The names that ``group=NAME`` accepts, sorted."""
    return sorted({path.stem for folder in _folders(group) for path in folder.glob("*.yaml")})


def path_of(group: str, name: str) -> Path | None:
    """The file of a choice; None where there is none."""
    return next((path for folder in _folders(group) if (path := folder / f"{name}.yaml").is_file()), None)


def shown(path: Path) -> str:
    """A file as messages name it: one of ours from configs/ on."""
    return f"configs/{path.relative_to(ROOT)}" if path.is_relative_to(ROOT) else str(path)


def required_path(group: str, name: str) -> Path:
    """The file of a choice.

    Raises:
        Refusal: there is no such file.
    """
    path = path_of(group, name)
    if path is None:
        raise Refusal(f"unknown {group} {name!r}; {nearest(name, choices(group))}")
    return path


def read(group: str, name: str) -> dict[str, Any]:
    """The content of GROUP/NAME.yaml. Callers must not change it.

    Raises:
        Refusal: there is no such file.
    """
    return content_of(required_path(group, name).absolute())


@functools.cache
def content_of(path: Path) -> dict[str, Any]:
    """The content of a file, which is read once. Callers must not change it."""
    return parse_yaml(path)


@functools.cache
def root() -> dict[str, Any]:
    """The content of configs/spec.yaml, the base of every recipe. Callers must not change it."""
    return parse_yaml(ROOT / "spec.yaml")


@functools.cache
def finetuning() -> dict[str, dict[str, Any]]:
    """The content of configs/finetuning.yaml: what each task that finetunes changes of a recipe."""
    return parse_yaml(ROOT / "finetuning.yaml")


def site_file(cluster: str) -> Path | None:
    """The cluster file outside configs/ that ``cluster=`` names: a path, or a name in the site's own folder.

    Raises:
        Refusal: it is a path, and there is no such file.
    """
    path = Path(cluster)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise Refusal(
                f"cluster={cluster}: no such file {path.absolute()}",
                "Give the path from the current directory, or a whole path; a file in the folder that "
                f"{SITE_FOLDER} names goes by its name without .yaml.",
            )
        return path.resolve()
    named = [folder / f"{cluster}.yaml" for folder in _folders("cluster")[:-1]]
    return next((path.resolve() for path in named if path.is_file()), None)


def cluster_names() -> list[str]:
    """Every ``cluster=NAME``."""
    return choices("cluster")


def recipe_names() -> list[str]:
    """The recipes that can be trained, as ``slipway list`` shows them."""
    return choices("recipe")


def model_names() -> list[str]:
    """Every ``model=NAME``."""
    return choices("model")


def precision_names() -> list[str]:
    """Every ``precision=NAME``."""
    return choices("precision")


def gpu_names() -> list[str]:
    """Every ``gpu=NAME``."""
    return choices("gpu")
