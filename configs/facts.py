"""One fact file at a time, typed: a model, a GPU, a precision, an optimizer, a task."""

from __future__ import annotations

import functools
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from slipway.configs.compose import chosen_groups
from slipway.configs.convert import convert
from slipway.configs.files import content_of, gpu_names, required_path, shown
from slipway.configs.planned import recipe_body
from slipway.configs.schema import Gpu, Model, Optimizer, Precision, Task

T = TypeVar("T")


def _fact(cls: type[T], group: str, name: str) -> T:
    return typing.cast(T, _typed(typing.cast(Any, cls), required_path(group, name).absolute()))


@functools.cache
def _typed(cls: Any, path: Path) -> Any:
    return convert(cls, content_of(path), f"{shown(path)}: ")


def model(name: str) -> Model:
    """The facts of one architecture, by the name of its file in the folder model."""
    return _fact(Model, "model", name)


def gpu(name: str) -> Gpu:
    """The facts of one accelerator, by the name of its file in the folder gpu."""
    return _fact(Gpu, "gpu", name)


def precision(name: str) -> Precision:
    """One mixed-precision recipe, by the name of its file in the folder precision."""
    return _fact(Precision, "precision", name)


def optimizer(name: str) -> Optimizer:
    """One optimizer and schedule, by the name of its file in the folder optim."""
    return _fact(Optimizer, "optim", name)


def task(name: str) -> Task:
    """One task, by the name of its file in the folder task."""
    return _fact(Task, "task", name)


def gpu_of_device(device_name: str) -> Gpu | None:
    """The accelerator that the driver calls ``device_name``; None for any other (an H100 PCIe, a MIG slice)."""
    return next((gpu(name) for name in gpu_names() if gpu(name).device_name == device_name), None)


def headline(recipe: str) -> tuple[Model, str, int]:
    """A recipe's model, GPU and number of GPUs, straight from its files: what a list of recipes shows.

    The model's sequence length is the recipe's.
    """
    chosen, body = chosen_groups(recipe), recipe_body(recipe)
    facts = model(chosen["model"])
    length = body.get("layout", {}).get("seq_length") or facts.seq_length
    return replace(facts, seq_length=length), chosen["gpu"], int(body["gpus"])
