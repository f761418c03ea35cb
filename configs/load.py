"""Load a recipe: compose its files under the user's overrides, check every value, and record who set it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slipway.configs.blend import (
    INDEXED,
    INSTRUCTIONS,
    MOCK,
    PATH_KEYS,
    flattened,
    require_consistent,
    require_validated,
)
from slipway.configs.compose import chosen_groups, cluster_values, compose, set_value
from slipway.configs.convert import convert, leaves
from slipway.configs.errors import Refusal, nearest
from slipway.configs.files import GROUPS, ROOT, choices, finetuning, path_of, read, recipe_names, shown
from slipway.configs.implied import implied_optimizer
from slipway.configs.overrides import NODES, given_overrides, refuse_interpolation, value_of
from slipway.configs.planned import planned_only_names, recipe_body
from slipway.configs.record import record_of, recorded, spec_from_record
from slipway.configs.schedule import (
    batch_ramp_error,
    batches_of,
    changes_error,
    has_constant,
    has_length,
    schedule_of,
)
from slipway.configs.schema import Call, Model, Spec
from slipway.configs.schema.pipeline_layout import chunks_of_text
from slipway.configs.schema.spec import MOST_GPUS
from slipway.configs.schema.stages import amount, change

__all__ = [
    "PARALLEL_KEYS",
    "ROOT",
    "Resolved",
    "contradiction",
    "load",
    "record_of",
    "recorded",
    "schema_keys",
    "spec_from_record",
]

PARALLEL_KEYS = tuple(
    f"layout.{size}"
    for size in (
        "tp",
        "pp",
        "vpp",
        "cp",
        "ep",
        "etp",
        "fsdp",
        "num_layers_in_first_pipeline_stage",
        "num_layers_in_last_pipeline_stage",
        "pipeline_layout",
    )
)
"""The keys that choose a layout: where none is given, the planner chooses one."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A composed recipe, and who set each of its values."""

    spec: Spec

    provenance: dict[str, str]
    """For each dotted key: ``default``, the file, or ``override``."""

    layout_given: bool
    """False where nobody set a parallel size, so that the planner is free to choose them."""

    given: frozenset[str]
    """The keys and groups that the user's overrides name."""

    @property
    def pinned(self) -> frozenset[str]:
        """The fields of the layout that overrides give: no search and no published layout changes them.

        What a recipe's file says of its layout is a default: a search may choose otherwise.
        """
        return frozenset(key.removeprefix("layout.") for key in self.given if key.startswith("layout."))

    @property
    def untouched(self) -> frozenset[str]:
        """The keys that neither an override nor a file sets: they are at the default of the schema."""
        return frozenset(key for key, who in self.provenance.items() if who == "default")

    @property
    def title(self) -> str:
        """The name under which a plan is shown: the run's, or that of the model which an override puts into it."""
        spec = self.spec
        replaced = "model" in self.given and "name" not in self.given and spec.model.name != spec.name
        return f"{spec.model.name} (in recipe {spec.name})" if replaced else spec.name


def schema_keys() -> dict[str, Any]:
    """Every key that an override may name, with its Python type."""
    return {key: field.kind for key, field in leaves(Spec).items()}


def load(name: str, overrides: Sequence[str] = (), *, to_plan: bool = False) -> Resolved:
    """Compose the recipe ``name`` under ``overrides`` (Hydra's key=value).

    Args:
        to_plan: accept the name of a model without a recipe too: it can be planned for, and not trained.

    Raises:
        Refusal: an unknown recipe, key or choice; a value that is illegal whatever the layout.
    """
    _require_known(name, to_plan)
    given = given_overrides(overrides)
    if "cluster" in given and (gpu := cluster_values(given["cluster"]).get("gpu")):
        given.setdefault("gpu", gpu)
    nodes = given.pop(NODES, None)
    groups = {key: text for key, text in given.items() if key in GROUPS}
    values = {key: value_of(key, text) for key, text in given.items() if key not in GROUPS}
    for key, value in values.items():
        refuse_interpolation(key, value)
    values |= {key: flattened(values[key], key) for key in _DATA_PATHS if key in values}
    brought = brought_by_task(name, groups)
    composed = compose(name, _in_groups(brought) | groups, _not_in_groups(brought) | values)
    implied = _imply_kind(composed, given)
    spec = convert(Spec, composed, "")
    _require_known_class(spec.model, given)
    require_consistent(spec.data, given, finetunes=spec.task.finetunes)
    require_validated(spec.data, spec.run)
    spec = _with_chunks(spec, given)
    if nodes is not None:
        spec = _on_nodes(spec, nodes, given)
    if error := spec.model.shape_error():
        raise Refusal(error)
    provenance = _provenance(name, given, spec, brought)
    if implied:
        provenance |= dict.fromkeys(("data.name", "data.kind"), "follows from data.paths")
    spec = _with_schedule(spec, provenance)
    layout_given = any(provenance[key] != "default" for key in PARALLEL_KEYS)
    return Resolved(spec=spec, provenance=provenance, layout_given=layout_given, given=frozenset(given))


def override(spec: Spec, overrides: Sequence[str], *, layout_given: bool = True) -> Resolved:
    """A spec that no recipe of ours describes, under the user's overrides.

    Args:
        layout_given: whether the spec's own layout is meant, so that the planner chooses none.

    Raises:
        Refusal: an unknown key or choice, or an illegal value.
    """
    given = given_overrides(overrides)
    nodes = given.pop(NODES, None)
    values = record_of(spec)
    if "cluster" in given and (gpu := cluster_values(given["cluster"]).get("gpu")):
        given.setdefault("gpu", gpu)
    for key, text in given.items():
        if key in GROUPS:
            values[key] = cluster_values(text) if key == "cluster" else read(key, text)
    for key, text in given.items():
        if key not in GROUPS:
            refuse_interpolation(key, value := value_of(key, text))
            set_value(values, key, value)
    made = _with_chunks(convert(Spec, values, ""), given)
    if nodes is not None:
        made = _on_nodes(made, nodes, given)
    if error := made.model.shape_error():
        raise Refusal(error)
    provenance = dict.fromkeys(leaves(Spec), "file") | dict.fromkeys(given, "override")
    layout_given = layout_given or any(key in given for key in PARALLEL_KEYS)
    return Resolved(spec=made, provenance=provenance, layout_given=layout_given, given=frozenset(given))


def _with_chunks(spec: Spec, given: Mapping[str, str]) -> Spec:
    """The spec with the VPP that follows from a pipeline layout, unless VPP is given; a rule compares the two.

    Raises:
        Refusal: the pipeline layout is not in Megatron-Core's notation.
    """
    layout = spec.layout
    if not layout.pipeline_layout:
        return spec
    try:
        chunks = len(chunks_of_text(layout.pipeline_layout))
    except ValueError as error:
        message = f"layout.pipeline_layout={layout.pipeline_layout} {error}"
        raise Refusal(message, "An example is Et|(tt|)*30mL.") from None
    if "layout.vpp" in given or chunks % layout.pp:
        return spec
    return dataclasses.replace(spec, layout=dataclasses.replace(layout, vpp=chunks // layout.pp))


def _require_known(name: str, to_plan: bool) -> None:
    if name in recipe_names():
        return
    planned = planned_only_names()
    if name not in planned:
        known = [*recipe_names(), *(planned if to_plan else [])]
        raise Refusal(f"unknown recipe {name!r}; {nearest(name, known)}")
    if not to_plan:
        raise Refusal(
            f"{name} is a model without a recipe: it can be planned for, not trained",
            "slipway check, plan, advise and show answer for it; docs/how-to/add-a-model.md makes a recipe.",
        )


def _require_known_class(model: Model, given: Mapping[str, str]) -> None:
    """Refuse a family or a class of NeMo's that an override names and no file of configs/model does."""
    for key in ("family", "nemo_config"):
        if f"model.{key}" in given:
            known = {str(read("model", name).get(key) or "") for name in choices("model")}
            if (value := getattr(model, key)) not in known:
                raise Refusal(f"unknown model.{key} {value!r}; {nearest(value, known - {''})}")


_DATA_PATHS = tuple(f"data.{key}" for key in PATH_KEYS)


def _imply_kind(composed: dict[str, Any], given: Mapping[str, str]) -> bool:
    """Flatten the blends of the composed ``data``, and choose its kind where it has paths and nobody chose one."""
    data = composed["data"]
    for key in PATH_KEYS:
        if key in data:
            data[key] = flattened(data[key], f"data.{key}")
    chosen = "data" in given or "data.kind" in given
    if chosen or data["kind"] != MOCK or not any(data.get(key) for key in PATH_KEYS):
        return False
    implied = read("data", INSTRUCTIONS if composed["task"]["call"] == Call.finetune else INDEXED)
    data.update({key: value for key, value in implied.items() if f"data.{key}" not in given})
    return True


_FINETUNED_LENGTH = 4096  # tokens: of a pack in NeMo's finetuning recipes


def brought_by_task(recipe: str, groups: Mapping[str, str]) -> dict[str, Any]:
    """What the task changes of a recipe that is written for pretraining: group -> choice, and dotted key -> value.

    Args:
        groups: the choices that overrides make.
    """
    chosen = chosen_groups(recipe) | dict(groups)
    brought = dict(finetuning().get(chosen["task"], {}))
    if brought:
        longest = int(read("model", chosen["model"])["seq_length"])
        brought["layout.seq_length"] = min(longest, _FINETUNED_LENGTH)
        brought |= _targets(chosen)
    return brought


def _targets(chosen: Mapping[str, str]) -> dict[str, Any]:
    """The layers that get an adapter, where the task's do not suit the model."""
    model, adapts = read("model", chosen["model"]), "lora_targets" in read("task", chosen["task"])
    kind = "experts" if model.get("num_moe_experts") else ""
    if model.get("kv_lora_rank"):
        kind = "latent_attention" if model.get("q_lora_rank") else "latent_attention_whole_queries"
    return {"task.lora_targets": list(finetuning()["lora_targets"][kind])} if adapts and kind else {}


def _in_groups(brought: Mapping[str, Any]) -> dict[str, str]:
    return {key: value for key, value in brought.items() if key in GROUPS}


def _not_in_groups(brought: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in brought.items() if key not in GROUPS}


def _with_schedule(spec: Spec, provenance: dict[str, str]) -> Spec:
    """The spec with what follows from its schedule and from what the user gave of it.

    That is the length of the run where nobody gave it, the other form of what the user gave, no ramp of the recipe's
    towards a batch of the user's, and no change of the recipe's to what the user's model does not have.

    Raises:
        Refusal: values of the schedule that contradict each other.
    """
    optim, given = spec.optim, {key for key, who in provenance.items() if who == "override"}
    changed = implied_optimizer(optim, given)
    notes = dict.fromkeys(changed, "follows from an override of optim")
    if "layout.gbs" in given and "optim.batch_ramp" not in given and optim.batch_ramp:
        changed["batch_ramp"], notes["batch_ramp"] = [], "turned off by the override of layout.gbs"
    kept = [line for line in optim.changes if has_constant(spec.model, change(line).name)]
    if "optim.changes" not in given and kept != optim.changes:
        changed["changes"] = kept
        notes["changes"] = f"{provenance['optim.changes']}, less what {spec.model.name} does not have"
    spec = dataclasses.replace(spec, optim=dataclasses.replace(optim, **changed))
    provenance.update({f"optim.{key}": note for key, note in notes.items()})
    if error := contradiction(spec):
        raise Refusal(*error)
    steps = _length(spec, provenance)
    if steps is None:
        return spec
    provenance["run.max_steps"] = "run.max_tokens" if spec.run.max_tokens else "the length of optim's schedule"
    return dataclasses.replace(spec, run=dataclasses.replace(spec.run, max_steps=max(1, steps)))


def contradiction(spec: Spec) -> tuple[str, str] | None:
    """What contradicts itself in the schedule or the model, whatever the layout, and how to fix it."""
    return spec.optim.error() or batch_ramp_error(spec) or changes_error(spec) or spec.model.rope_scaling_error()


def _length(spec: Spec, provenance: Mapping[str, str]) -> int | None:
    """The steps that follow from the run's tokens or from its schedule; None where ``run.max_steps`` is given.

    Raises:
        Refusal: steps and tokens are both given.
    """
    run, by_steps, by_tokens = spec.run, provenance["run.max_steps"], provenance["run.max_tokens"]
    if by_steps == by_tokens == "override" and run.max_tokens:
        raise Refusal(
            f"run.max_steps={run.max_steps} and run.max_tokens={run.max_tokens} are both given", "Give one of them."
        )
    if run.max_tokens and (by_steps == "default" or by_tokens == "override"):
        return batches_of(spec).steps_for(amount(run.max_tokens))
    if by_steps == "default" and has_length(spec.optim):
        return schedule_of(spec).learning_rate.steps
    return None


def _on_nodes(spec: Spec, nodes: str, given: dict[str, str]) -> Spec:
    """The spec on so many nodes; ``given`` gains the number of GPUs that they make."""
    most = MOST_GPUS // spec.gpus_per_node
    if not re.fullmatch("[0-9]{1,8}", nodes) or not 1 <= int(nodes) <= most:
        raise Refusal(f"nodes={nodes} is not legal: it must be a whole number, between 1 and {most}.")
    gpus = int(nodes) * spec.gpus_per_node
    if "gpus" in given and spec.gpus != gpus:
        raise Refusal(
            f"nodes={nodes} are {gpus} GPUs on {spec.cluster.name}, and gpus={spec.gpus} was given too",
            "Give one of them.",
        )
    given["gpus"] = str(gpus)
    return dataclasses.replace(spec, gpus=gpus)


def _provenance(recipe: str, given: Mapping[str, str], spec: Spec, brought: Mapping[str, Any]) -> dict[str, str]:
    """Who set each key: default (the schema), a fact or preset file, the recipe, the task, or an override."""
    who = dict.fromkeys(leaves(Spec), "default")
    for group in GROUPS:
        choice = getattr(spec, group).name
        if path := path_of(group, choice):
            kind = {"model": "model fact", "gpu": "fact"}.get(group, "preset")
            for key in _dotted(read(group, choice)):
                who[f"{group}.{key}"] = f"{kind} ({shown(path)})"
    body = {key: value for key, value in recipe_body(recipe).items() if key != "defaults"}
    path = path_of("recipe", recipe)
    for key in _dotted(body):
        who[key] = f"recipe ({shown(path)})" if path else "default of a model without a recipe"
    who |= dict.fromkeys(_not_in_groups(brought), f"task={spec.task.name} (configs/finetuning.yaml)")
    return who | {key: "override" for key in given if key in who}


def _dotted(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys of nested values."""
    keys: list[str] = []
    for key, value in values.items():
        keys += _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [prefix + key]
    return keys
