"""Compose one recipe from the YAML groups and the user's ``key=value`` overrides; refuse what the schema does not know.

Hydra composes, OmegaConf types, and every value remembers who set it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import typing
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from slipway.configs.convert import convert, fields_of, leaves
from slipway.configs.errors import Refusal, nearest
from slipway.configs.schema import Gpu, Model, Optimizer, Precision, Spec, Task

ROOT = Path(__file__).parent
GROUPS = ("model", "gpu", "precision", "optim", "data", "task", "cluster")
CLUSTERS = "SLIPWAY_CLUSTERS"  # environment: a folder of cluster files
NODES = "nodes"  # a way to say gpus: nodes x the GPUs of the cluster's nodes
PARALLEL_KEYS = tuple(
    f"layout.{k}"
    for k in "tp pp vpp cp ep etp fsdp num_layers_in_first_pipeline_stage num_layers_in_last_pipeline_stage".split()
)


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A composed recipe and, for each dotted key, who set it.

    ``layout_given`` is False when nobody chose a parallel size, so that the planner is free to.
    """

    spec: Spec
    provenance: dict[str, str]
    layout_given: bool


def _folders(group: str) -> list[Path]:
    """Where the files of a group are; a site may keep its clusters in a folder of its own, which goes first."""
    own = os.environ.get(CLUSTERS) if group == "cluster" else None
    return [*([Path(own)] if own else []), ROOT / group]


def _choices(group: str) -> list[str]:
    return sorted({p.stem for folder in _folders(group) for p in folder.glob("*.yaml")})


def cluster_names() -> list[str]:
    """Every ``cluster=NAME``: ours, and those of the folder that the environment's SLIPWAY_CLUSTERS names."""
    return _choices("cluster")


def recipe_names() -> list[str]:
    """The recipes that can be trained, as ``slipway list`` shows them."""
    return _choices("recipe")


def model_names() -> list[str]:
    return _choices("model")


def precision_names() -> list[str]:
    return _choices("precision")


def gpu_names() -> list[str]:
    return _choices("gpu")


def schema_keys() -> dict[str, Any]:
    """Every key an override may name, with its Python type."""
    return {key: field.kind for key, field in leaves(Spec).items()}


def _read(group: str, name: str) -> dict[str, Any]:
    path = ROOT / group / f"{name}.yaml"
    if not path.is_file():
        raise Refusal(f"unknown {group} {name!r}; {nearest(name, _choices(group))}")
    return typing.cast("dict[str, Any]", yaml.safe_load(path.read_text()))


@functools.cache
def model(name: str) -> Model:
    """The facts of one architecture, by its file name in configs/model."""
    return convert(Model, _read("model", name), f"configs/model/{name}.yaml: ")


@functools.cache
def gpu(name: str) -> Gpu:
    """The facts of one accelerator, by its file name in configs/gpu."""
    return convert(Gpu, _read("gpu", name), f"configs/gpu/{name}.yaml: ")


def gpu_of_device(device_name: str) -> Gpu | None:
    """The accelerator that a driver calls ``device_name``, if it is one of ours: an H100 PCIe, or a slice of an H100,
    is not an H100.
    """
    return next((gpu(name) for name in gpu_names() if gpu(name).device_name == device_name), None)


@functools.cache
def precision(name: str) -> Precision:
    """One mixed-precision recipe, by its file name in configs/precision."""
    return convert(Precision, _read("precision", name), f"configs/precision/{name}.yaml: ")


@functools.cache
def optimizer(name: str) -> Optimizer:
    """One optimizer and schedule, by its file name in configs/optim."""
    return convert(Optimizer, _read("optim", name), f"configs/optim/{name}.yaml: ")


@functools.cache
def task(name: str) -> Task:
    """One task, by its file name in configs/task."""
    return convert(Task, _read("task", name), f"configs/task/{name}.yaml: ")


def headline(name: str) -> tuple[Model, str, int]:
    """A recipe's model, GPU and GPU count, read straight from its file: what a list of recipes needs of each."""
    recipe = _read("recipe", name)
    chosen = {"gpu": "h100"}
    for entry in recipe["defaults"]:
        for key, value in entry.items():
            chosen[key.removeprefix("override /")] = value
    return model(chosen["model"]), chosen["gpu"], int(recipe["gpus"])


def _split(override: str) -> tuple[str, str]:
    key, eq, value = override.partition("=")
    if not eq or not key:
        raise Refusal(f"{override!r} is not an override", "Write key=value, for example layout.tp=4.")
    key = key.lstrip("+")
    if key == "layout.fsdp":  # also as a switch
        value = {"true": "megatron", "1": "megatron", "false": "none", "0": "none"}.get(value.lower(), value)
    return key, value


def _check_keys(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides as a mapping; unknown keys and unknown choices are refused before Hydra sees them."""
    given: dict[str, str] = {}
    keys = schema_keys()
    for override in overrides:
        key, value = _split(override)
        if key in GROUPS:
            if value not in _choices(key) and not _site_file(key, value):
                raise Refusal(f"unknown {key} {value!r}; {nearest(value, _choices(key))}")
        elif (
            key != NODES
            and key not in keys
            and not any(key.startswith(k + ".") for k, t in keys.items() if "dict" in str(t))
        ):
            raise Refusal(f"unknown key {key!r}; {nearest(key, [*keys, *GROUPS, NODES])}")
        given[key] = value
    return given


def _site_file(group: str, value: str) -> Path | None:
    """A user's own cluster file: ``cluster=path/to/site.yaml``, or ``cluster=site`` in the folder of
    SLIPWAY_CLUSTERS.
    """
    if group != "cluster":
        return None
    path = Path(value)
    if path.suffix in (".yaml", ".yml"):
        return path.resolve() if path.is_file() else None
    named = [folder / f"{value}.yaml" for folder in _folders(group) if folder != ROOT / group]
    return next((p.resolve() for p in named if p.is_file()), None)


def load(name: str, overrides: Sequence[str] = ()) -> Resolved:
    """Compose the recipe ``name`` under ``overrides`` (Hydra's key=value).

    Raises:
        Refusal: unknown recipe, key or choice; a value of the wrong type; a size that nothing can have.
    """
    if name not in recipe_names():
        raise Refusal(f"unknown recipe {name!r}; {nearest(name, recipe_names())}")
    given = _check_keys(overrides)
    site = _site_file("cluster", given.get("cluster", ""))
    if "cluster" in given:
        of_cluster = yaml.safe_load(site.read_text()) if site else _read("cluster", given["cluster"])
        if not isinstance(of_cluster, dict):
            raise Refusal(f"{site} holds no cluster", "See configs/cluster/dgx_h100.yaml for one.")
        if of_cluster.get("gpu"):
            given.setdefault("gpu", of_cluster["gpu"])
    nodes = given.pop(NODES, None)

    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    groups = [f"{k}={v}" for k, v in given.items() if k in GROUPS and not (k == "cluster" and site)]
    values = [f"++{k}={v}" for k, v in given.items() if k not in GROUPS]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(ROOT), version_base="1.3"):
            composed = compose("spec", overrides=[f"recipe={name}", *groups, *values])
    except HydraException as error:
        raise Refusal(f"the overrides could not be read: {str(error).splitlines()[0]}") from None
    if site:
        with open_dict(composed):
            composed.cluster = OmegaConf.merge({"name": site.stem}, of_cluster)
            for override in OverridesParser.create().parse_overrides([v for v in values if v.startswith("++cluster.")]):
                OmegaConf.update(composed, override.key_or_group, override.value(), force_add=True)
    try:
        plain = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise Refusal(f"the overrides could not be read: {str(error).splitlines()[0]}") from None
    spec = convert(Spec, typing.cast("dict[str, Any]", plain), "")
    if nodes is not None:
        spec = _on_nodes(spec, nodes, given)
    if wrong := spec.model.pattern_error():
        raise Refusal(wrong)
    provenance = _provenance(name, given, spec)
    chosen = {k for k in PARALLEL_KEYS if provenance.get(k, "default") != "default"}
    return Resolved(spec, provenance, bool(chosen))


def _on_nodes(spec: Spec, nodes: str, given: dict[str, str]) -> Spec:
    if not nodes.isdigit() or not int(nodes):
        raise Refusal(f"nodes={nodes} is not legal: it must be a whole number, at least 1.")
    gpus = int(nodes) * spec.gpus_per_node
    if "gpus" in given and spec.gpus != gpus:
        raise Refusal(
            f"nodes={nodes} are {gpus} GPUs on {spec.cluster.name}, and gpus={spec.gpus} was given too",
            "Give one of them.",
        )
    given["gpus"] = str(gpus)
    return dataclasses.replace(spec, gpus=gpus)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out


def _provenance(name: str, given: dict[str, str], spec: Spec) -> dict[str, str]:
    """Who set each key: default (the schema), a fact or preset file, the recipe, or an override."""
    who = dict.fromkeys(schema_keys(), "default")
    for group in GROUPS:
        choice = getattr(spec, group).name
        if (ROOT / group / f"{choice}.yaml").is_file():
            kind = "model fact" if group == "model" else "fact" if group == "gpu" else "preset"
            for key in _flat(_read(group, choice)):
                who[f"{group}.{key}"] = f"{kind} (configs/{group}/{choice}.yaml)"
    recipe = _read("recipe", name)
    recipe.pop("defaults", None)
    for key in _flat(recipe):
        who[key] = f"recipe (configs/recipe/{name}.yaml)"
    for key in given:
        if key in who:
            who[key] = "override"
    return who


def record_of(spec: Spec) -> dict[str, Any]:
    """The spec as plain data, for a run's own record; :func:`spec_from_record` reads it."""
    return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(spec)))


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def spec_from_record(record: dict[str, Any]) -> Spec:
    """The spec that a run stored beside its logs, checked by today's schema.

    An earlier version's record lacks what the schema has gained since: what has a default takes it, the facts of a
    GPU or a model come from today's file of that name.

    Raises:
        Refusal: a key or value that the schema does not know.
    """
    completed = dict(record)
    if "lora_rank" in completed.get("run", {}):  # where it stood before a run had a task
        run = dict(completed["run"])
        if rank := run.pop("lora_rank"):
            completed["task"] = _read("task", "lora") | {"lora_rank": rank}
        completed["run"] = run
    for group, cls in (("model", Model), ("gpu", Gpu)):
        held = completed.get(group)
        if isinstance(held, dict) and held.get("name") in _choices(group):
            needed = {field.name for field in fields_of(cls).values() if field.required} - held.keys()
            completed[group] = held | {k: v for k, v in _read(group, held["name"]).items() if k in needed}
    return convert(Spec, completed, "stored recipe: ")
