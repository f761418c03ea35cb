"""Write a recipe of the user's own: its model, its optimizer and its defaults, one file each."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from slipway import configs
from slipway.configs import Layout, Model, Optimizer, Refusal, Resolved
from slipway.configs.convert import fields_of
from slipway.configs.files import HERE, OWN_FOLDER, ROOT, path_of
from slipway.configs.load import load
from slipway.configs.record import plain_of
from slipway.launch.own.donor import Donor, donor_of, with_class

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_CHOSEN_BY_SEARCH = "source split_unevenly".split()


@dataclass(frozen=True)
class Draft:
    """A recipe before it is written: the text of each file by its folder."""

    name: str
    texts: dict[str, str]
    donor: Donor | None
    """None: no class of NeMo that a recipe of ours uses trains the model; it can be planned for only."""


def draft(name: str, resolved: Resolved, came_from: str, families: tuple[str, ...] = ()) -> Draft:
    """The files of a recipe that trains what ``resolved`` describes.

    Args:
        came_from: the file or recipe that it was read from, as the files say it.
        families: families of ours whose classes come first.

    Raises:
        Refusal: the name is not legal, or taken.
    """
    _require_free(name)
    spec = resolved.spec
    model = replace(spec.model, name=name, source=spec.model.source or came_from)
    donor = donor_of(model, families)
    head = f"# Written by slipway new {name} --from {came_from}\n"
    texts = {}
    if donor is None:
        texts["model"] = head + _dumped(_facts(Model, replace(model, nemo_config="")))
        return Draft(name, texts, None)
    model = with_class(model, donor)
    texts["model"] = head + _dumped(_facts(Model, model))
    optim = donor.optim
    if spec.optim.name == "read":
        optim = name
        texts["optim"] = head + _dumped(_facts(Optimizer, replace(spec.optim, name=name, source=came_from)))
    texts["recipe"] = head + _recipe(name, resolved, donor, optim)
    return Draft(name, texts, donor)


def _require_free(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Refusal(f"{name!r} is no name for a recipe", "Use lower-case letters, digits and _, a letter first.")
    for group in ("recipe", "model"):
        if (path := path_of(group, name)) is not None:
            whose = "Slipway's own" if path.is_relative_to(ROOT) else str(path)
            raise Refusal(f"there is a {group} {name} already: {whose}", "Choose another name, or remove the file.")


def _facts(cls: type, made: Any) -> dict[str, Any]:
    """What of an instance differs from the schema's defaults, as plain data."""
    plain = plain_of(made)
    fields = fields_of(cls)
    return {
        key: value for key, value in plain.items() if fields[key].required or getattr(made, key) != _default(cls, key)
    }


def _default(cls: type, name: str) -> Any:
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _dumped(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def _recipe(name: str, resolved: Resolved, donor: Donor, optim: str) -> str:
    spec = resolved.spec
    chosen = {"model": name, "optim": optim, "gpu": spec.gpu.name, "precision": spec.precision.name}
    defaults = "".join(f"  - override /{group}: {choice}\n" for group, choice in chosen.items())
    body: dict[str, Any] = {"name": name, "gpus": spec.gpus}
    if resolved.layout_given:
        body["layout"] = {
            key: value for key, value in _facts(Layout, spec.layout).items() if key not in _CHOSEN_BY_SEARCH
        }
        body["run"] = {"max_steps": spec.run.max_steps}
    else:
        body["layout"] = _batch(resolved, donor)
    body |= _of_groups(resolved)
    return f"# @package _global_\ndefaults:\n{defaults}" + _dumped(
        {key: value for key, value in body.items() if value != {}}
    )


def _of_groups(resolved: Resolved) -> dict[str, Any]:
    """What a run changes in its precision, levers and optimizer."""
    spec = resolved.spec
    base = configs.precision(spec.precision.name)
    changed = {key: value for key, value in plain_of(spec.precision).items() if value != plain_of(base)[key]}
    by_recipe = {key for key, who in resolved.provenance.items() if who.startswith("recipe")}
    optim = {key: value for key, value in plain_of(spec.optim).items() if f"optim.{key}" in by_recipe}
    if spec.optim.precision_aware and spec.optim.name != "read":
        optim |= {"precision_aware": True, "moments": spec.optim.moments.value}
    return {"precision": changed, "levers": _facts(type(spec.levers), spec.levers), "optim": optim}


def _batch(resolved: Resolved, donor: Donor) -> dict[str, Any]:
    """The batch of a recipe; of a model whose file says nothing of a run, its donor's."""
    known = resolved.provenance["layout.gbs"].startswith("recipe")
    batch = resolved.spec if known else load(donor.recipe).spec
    length = resolved.spec.seq_length
    return {"gbs": batch.layout.gbs} | ({"seq_length": length} if length != resolved.spec.model.seq_length else {})


def folder() -> Path:
    """Where recipes of the user's own are written; it is made.

    Raises:
        Refusal: it is a Python package, or cannot be made.
    """
    path = Path(os.environ.get(OWN_FOLDER) or HERE)
    if (path / "__init__.py").exists():
        raise Refusal(f"{path} is a Python package", f"Set {OWN_FOLDER} to a folder for your recipes.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"{path} cannot be made: {error.strerror}", f"Set {OWN_FOLDER} to another folder.") from None
    return path


def write(made: Draft) -> list[Path]:
    """Write the files, and load what they describe; where it is refused, no file stays.

    Raises:
        Refusal: a file cannot be written, or the recipe is refused.
    """
    root, written = folder(), []
    try:
        for group, text in made.texts.items():
            path = root / group / f"{made.name}.yaml"
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(text)
            temporary.replace(path)
            written.append(path)
        load(made.name, to_plan=made.donor is None)
    except OSError as error:
        _remove(written)
        raise Refusal(f"{root} cannot be written: {error.strerror}", f"Set {OWN_FOLDER} to another folder.") from None
    except Refusal:
        _remove(written)
        raise
    return written


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
