"""What checkpoints a folder holds, which of them are whole, and what a run that starts there will do. Loads nothing
into memory.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from slipway.configs import Refusal

UNFINISHED = "-unfinished"  # NeMo's marker next to a checkpoint that is being written

BEING_WRITTEN = "was still being written"
_OTHER_FORMATS = (".ckpt", ".nemo", ".distcp")  # files of Lightning, NeMo 1 and torch


def step_of(checkpoint: Path) -> int:
    """The step in a name such as ``step=199-last``; -1 if there is none."""
    digits = "".join(c for c in checkpoint.name.split("-")[0] if c.isdigit())
    return int(digits) if digits else -1


class _Skeleton:
    """Stands for every class of the writer's metadata, so that it can be read without torch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})

    def __setitem__(self, key: Any, value: Any) -> None:
        """As an object that is filled like a dictionary."""

    def append(self, value: Any) -> None:
        """As an object that is filled like a list."""

    extend = append


# Packages whose classes the indices of checkpoints are made of.
_PACKAGES = ("torch", "megatron", "nemo", "numpy", "collections", "pathlib", "types", "argparse", "enum", "slipway")
_BUILT_IN = frozenset(
    "set frozenset list tuple dict bytearray complex slice range int float str bytes bool object".split()
)


class ForeignName(ValueError):
    """A pickle names what no checkpoint is made of."""


class _Reader(pickle.Unpickler):
    """Reads a pickle without calling anything that it names."""

    def persistent_load(self, pid: Any) -> Any:
        """A tensor's storage, which is not read."""
        return _Skeleton(pid)

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] not in _PACKAGES and not (module == "builtins" and name in _BUILT_IN):
            raise ForeignName(f"{module}.{name}")
        return {"OrderedDict": dict, "set": set, "tuple": tuple, "list": list, "dict": dict}.get(name, _Skeleton)


def _extents(metadata: Path) -> dict[str, int]:
    """File name -> least number of bytes, according to the checkpoint's index."""
    with metadata.open("rb") as f:
        held = _Reader(f).load()
    ends: dict[str, int] = {}
    for where in held.storage_data.values():
        name, offset, length = where.relative_path, where.offset, where.length
        ends[name] = max(ends.get(name, 0), offset + length)
    return ends


def damage(checkpoint: Path) -> str:
    """What keeps a distributed checkpoint from being loaded, in a few words; empty if it is whole.

    Every shard must be there and as long as the index, which is written last, says.
    """
    if checkpoint.with_name(checkpoint.name + UNFINISHED).exists():
        return BEING_WRITTEN
    if checkpoint.is_file():
        return "is a file, not a distributed checkpoint of NeMo 2.0"
    weights = checkpoint / "weights"
    index = weights / ".metadata"
    if not index.is_file():
        if (checkpoint / ".metadata").is_file():
            return "is of Megatron-FSDP (fsdp_dtensor), which cannot be resumed"
        return "has no index (weights/.metadata)"
    try:
        extents = _extents(index)
    except ForeignName as error:
        return f"has an index that names {error}, which no checkpoint needs: loading it could run any command"
    except Exception as error:  # a damaged pickle can raise anything
        return f"has an unreadable index ({type(error).__name__})"
    for name, size in sorted(extents.items()):
        shard = weights / name
        if not shard.is_file():
            return f"lacks {name}"
        if shard.stat().st_size < size:
            return f"has {name} cut short: {shard.stat().st_size} of {size} bytes"
    common = weights / "common.pt"
    if common.exists() and not zipfile.is_zipfile(common):
        return "has common.pt cut short"
    return _foreign_in(common) if common.exists() else ""


def _foreign_in(archive: Path) -> str:
    """What a file of torch.save names that no checkpoint needs, in a few words; empty if nothing."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                if name.endswith(".pkl"):
                    _Reader(io.BytesIO(opened.read(name))).load()
    except ForeignName as error:
        return f"has {archive.name} that names {error}, which no checkpoint needs: loading it could run any command"
    except Exception as error:  # a damaged pickle can raise anything
        return f"has an unreadable {archive.name} ({type(error).__name__})"
    return ""


@dataclass(frozen=True)
class Held:
    """The checkpoints of one folder: the one to resume from, and what is wrong with the newer ones."""

    newest: Path | None
    passed_over: dict[str, str]
    lost: bool = False  # one of them was finished and then damaged, or has another format

    @property
    def step(self) -> int:
        return step_of(self.newest) if self.newest else -1


def base_checkpoint(base: Path) -> Path:
    """The checkpoint whose weights a run with this ``run.base`` starts from: it, or the newest whole one of that run.

    Raises:
        Refusal: there is none.
    """
    if (base / "weights").is_dir():
        if wrong := damage(base):
            raise Refusal(f"run.base={base} cannot be loaded: it {wrong}", "Give another checkpoint, or restore it.")
        return base
    folder = base / "checkpoints"
    found = held(folder)
    if found.newest is not None:
        return found.newest
    wrong = next((f"{name} {what}" for name, what in found.passed_over.items()), "it holds no checkpoint")
    raise Refusal(
        f"run.base={base} has no checkpoint to start from: {wrong}",
        "Give the folder of a run, which has checkpoints in it, or of a checkpoint, which has weights in it.",
    )


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, whole or not, the newest first."""
    if not folder.is_dir():
        return []
    there = [
        found
        for found in folder.iterdir()
        if (found.is_dir() or found.suffix in _OTHER_FORMATS) and not found.name.endswith(UNFINISHED)
    ]
    return sorted(there, key=lambda d: (step_of(d), d.name.endswith("-last")), reverse=True)


def held(folder: Path, distrusted: Mapping[str, str] = MappingProxyType({})) -> Held:
    """The newest whole checkpoint of ``folder``; only what is newer than it is examined.

    Args:
        distrusted: what is known to be wrong with some, by their names.
    """
    passed: dict[str, str] = {}
    lost = False
    for checkpoint in checkpoints_in(folder):
        wrong = distrusted.get(checkpoint.name) or damage(checkpoint)
        if not wrong:
            return Held(checkpoint, passed, lost)
        passed[checkpoint.name] = wrong
        lost = lost or wrong != BEING_WRITTEN
    return Held(None, passed, lost)


def nothing_whole(folder: Path, found: Held) -> Refusal:
    """Why a run does not start from step 0 in a folder that holds checkpoints, of which none can be loaded."""
    name, wrong = next(iter(found.passed_over.items()))
    return Refusal(
        f"no checkpoint of {folder} can be loaded: {name} {wrong}",
        "Restore it or move the folder away; run.resume=false starts from step 0 anyway.",
    )
