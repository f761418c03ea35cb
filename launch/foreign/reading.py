"""What reading a file gives: a run, and an account of every argument of the file. Kinds of files implement ``Kind``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from slipway.configs import Refusal, Resolved
from slipway.planner.rules.registry import Framework, Violation

USUAL_GPU = "h100"  # where a file does not say
LARGEST_BYTES = 4 << 20  # of a script or a configuration; of a log only so much is read
NO_RUN = "no-run"
"""``rule`` of a Refusal that says that a file describes no training of a model."""
MOST_LAYERS = 10_000  # of a model; more are a slip of the pen, and every layer is looked at


@dataclass(frozen=True)
class File:
    """A file or folder that the user names, and its text."""

    path: Path
    text: str
    whole: bool = True
    """False: the file is larger, and this is its beginning."""

    @property
    def name(self) -> str:
        """The file's name, as a message names it."""
        return self.path.name


@dataclass(frozen=True)
class Request:
    """What the user gives beside the file."""

    overrides: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    """Values of the script's variables, ``--set NAME=VALUE``."""


class Terms(Protocol):
    """The words in which a file says what our keys say."""

    def say(self, text: str) -> str:
        """A message or a fix with the file's own arguments in place of our keys."""

    def changes(self, before: Any, after: Any) -> list[str]:
        """What to change in the file so that its layout ``before`` becomes ``after``."""


class SameTerms:
    """For files that have no words for a layout."""

    def say(self, text: str) -> str:
        return text

    def changes(self, before: Any, after: Any) -> list[str]:
        return []


@dataclass(frozen=True)
class Reading:
    """A file that was understood as a run."""

    kind: str
    version: str
    """The version of the software by whose definitions it was read."""
    path: Path
    resolved: Resolved
    used: list[str]
    """The arguments that the answer depends on, each with its value."""
    irrelevant: list[str]
    """The arguments without bearing on legality, memory and speed."""
    unknown: list[str]
    """The arguments that were not understood."""
    not_modelled: list[str] = field(default_factory=list)
    """The arguments that are understood, may have a bearing, and are not part of the planner's model."""
    assumed: list[str] = field(default_factory=list)
    """What the file leaves open, and what was taken instead."""
    dropout: bool = False
    """Whether the run has dropout, whose masks cost memory and time."""
    lifted: frozenset[str] = frozenset()
    """The rules that an argument of the file, which a Spec does not hold, makes void."""
    framework: Framework = Framework.megatron_lm
    """What trains the run, whose rules hold."""
    advice: list[Violation] = field(default_factory=list)
    """What is wrong with the file and is no rule of a Spec."""
    terms: Terms = field(default_factory=SameTerms)

    def as_json(self) -> dict[str, Any]:
        """``source`` of ``check --json``."""
        return {
            "kind": self.kind,
            "version": self.version,
            "path": str(self.path),
            "used": self.used,
            "irrelevant": self.irrelevant,
            "unknown": self.unknown,
            "not_modelled": self.not_modelled,
            "assumed": self.assumed,
        }


class Kind(Protocol):
    """A module of ``kinds``: one kind of file."""

    NAME: str

    def recognizes(self, file: File) -> bool:
        """Whether the file is of this kind, by its name and its first lines."""

    def read(self, file: File, request: Request) -> Reading:
        """The run that the file describes.

        Raises:
            Refusal: it is incomplete or contradicts itself; one sentence says how.
        """


def open_file(path: Path) -> File:
    """The text of a file, or of the config.json of a folder.

    Raises:
        Refusal: no such file, not text, or too large.
    """
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise Refusal(f"there is no file {path}", "Give the path of a script, a configuration or a folder of a model.")
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise Refusal(f"{path} cannot be read: {error.strerror}") from None
    whole = len(content) <= LARGEST_BYTES
    content = content[:LARGEST_BYTES]
    if b"\0" in content:
        raise Refusal(f"{path} is not text", "Give a launch script, a configuration or a log.")
    try:
        text = content.decode() if whole else content.decode(errors="ignore")
    except UnicodeDecodeError as error:
        raise Refusal(f"{path} is not UTF-8 text at byte {error.start}", "Save it as UTF-8.") from None
    if not text.strip():
        raise Refusal(f"{path} is empty")
    return File(path, text, whole)


def _in_folder(path: Path) -> File:
    for name in ("config.json", "model_config.yaml"):
        if (path / name).is_file():
            return open_file(path / name)
    raise Refusal(f"{path} has neither a config.json nor a model_config.yaml", "Give the file itself.")


def run_name(file: File) -> str:
    """The run's name: that of the file, or of the folder of a file whose name says its kind."""
    name = file.path.resolve().parent.name if file.path.stem in ("model_config", "config") else file.path.stem
    return re.sub(r"[^\w.-]", "_", name) or "file"


def gpu_in(name: str) -> str:
    """The GPU that a name holds; empty where it holds none."""
    known = ("gb300", "gb200", "b300", "b200", "h200", "h100", "a100")
    return next((gpu for gpu in known if gpu in name.lower()), "")


def require_layers(layers: int, where: str) -> None:
    """Refuse a number of layers that no model has."""
    if layers > MOST_LAYERS:
        raise Refusal(f"{where} has {layers:,} layers, and at most {MOST_LAYERS:,} can be planned", "Correct it.")


def yaml_of(file: File, loader: Any = yaml.SafeLoader) -> Any:
    """What a YAML file holds.

    Raises:
        Refusal: the file is not YAML.
    """
    try:
        return yaml.load(file.text, Loader=loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise Refusal(f"{file.path} is not YAML: {' '.join(str(error).split())}", "Correct it.") from None


def require_whole(file: File) -> None:
    """Refuse a file of which only the beginning was read."""
    if not file.whole:
        size = file.path.stat().st_size / 1e6
        raise Refusal(
            f"{file.path} has {size:,.0f} MB, and a script or configuration has at most {LARGEST_BYTES / 1e6:.0f}",
            "Give the script itself.",
        )
