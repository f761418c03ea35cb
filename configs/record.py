"""A spec or a model as plain data, for the records that runs and imported weights keep of themselves, and back."""

from __future__ import annotations

import dataclasses
import typing
from enum import Enum
from pathlib import Path
from typing import Any

from slipway.configs.convert import convert, fields_of
from slipway.configs.errors import Refusal
from slipway.configs.files import choices, parse_json, read
from slipway.configs.schema import Gpu, Model, Spec


def record_of(spec: Spec) -> dict[str, Any]:
    """The spec as plain data, which :func:`spec_from_record` reads."""
    return plain_of(spec)


def plain_of(part: Any) -> dict[str, Any]:
    """A part of a spec as plain data."""
    return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(part)))


def record_of_model(model: Model) -> dict[str, Any]:
    """A model as plain data, which :func:`model_from_record` reads."""
    return plain_of(model)


def model_from_record(record: dict[str, Any]) -> Model:
    """The model that was stored, checked against today's schema.

    Raises:
        Refusal: a key or value that the schema does not know.
    """
    return convert(Model, record, "stored model: ")


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def spec_from_record(record: dict[str, Any]) -> Spec:
    """The spec that a run stored in its folder, checked against today's schema.

    The record of an earlier version lacks the keys that the schema has gained since. Keys with a default take it;
    required facts of a GPU or a model come from today's file of the same name.

    Raises:
        Refusal: a key or value that the schema does not know.
    """
    if not isinstance(record, dict):
        raise Refusal(f"stored recipe: {type(record).__name__} is not legal: it must be a mapping.")
    completed = _without_flexible_pipeline(_with_task(record))
    for group, cls in (("model", Model), ("gpu", Gpu)):
        stored = completed.get(group)
        if isinstance(stored, dict) and str(stored.get("name")) in choices(group):
            required = {field.name for field in fields_of(cls).values() if field.required}
            missing = {
                key: value for key, value in read(group, stored["name"]).items() if key in required - stored.keys()
            }
            completed[group] = stored | missing
    spec = convert(Spec, completed, "stored recipe: ")
    if error := spec.model.shape_error():
        raise Refusal(f"stored recipe: {error}")
    return spec


def recorded(path: Path) -> tuple[Spec, dict[str, Any]]:
    """The spec that a run's record holds, and all of the record.

    Raises:
        Refusal: the file cannot be read, or is not the record of a run.
    """
    stored = parse_json(path, "the record of a run")
    if "spec" not in stored:
        raise Refusal(f"{path} cannot be read: it has no 'spec'")
    try:
        return spec_from_record(stored["spec"]), stored
    except Refusal as refusal:
        raise Refusal(f"{path} cannot be read: {refusal.message}", refusal.fix) from None


def _without_flexible_pipeline(record: dict[str, Any]) -> dict[str, Any]:
    """The record without ``layout.flexible_pipeline``, which could be planned for and never trained."""
    layout = record.get("layout")
    if not isinstance(layout, dict) or layout.get("flexible_pipeline"):
        return record
    return record | {"layout": {key: value for key, value in layout.items() if key != "flexible_pipeline"}}


def _with_task(record: dict[str, Any]) -> dict[str, Any]:
    """The record with ``task.lora_rank`` in place of ``run.lora_rank``, which runs had before tasks existed."""
    if not isinstance(record.get("run"), dict) or "lora_rank" not in record["run"]:
        return dict(record)
    run = dict(record["run"])
    rank = run.pop("lora_rank")
    task = {"task": read("task", "lora") | {"lora_rank": rank}} if rank else {}
    return record | {"run": run} | task
