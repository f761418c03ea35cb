"""The sizes of a layout, enumerated once: in words, as overrides, as values and as a cache key. Imports configs only.

TP, PP and CP are the tensor-, pipeline- and context-parallel sizes; VPP counts the model chunks of a pipeline rank; EP
and ETP split the experts; DP is the number of data-parallel ranks; MBS and GBS are the sequences of a micro-batch and
of the global batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from slipway.configs import Fsdp, Layout, Recompute, Schedule, Spec
from slipway.configs.overrides import text_of

PARALLEL = ("tp", "pp", "vpp", "cp", "ep", "etp")
"""The parallel sizes: how one copy of the model is split over ranks."""

SIZES = (*PARALLEL, "dp", "mbs", "gbs")
"""Every size of a run, in the order in which it is printed. ``dp`` follows from the GPU count; the others are fields of
Layout."""

PLACEMENT = (
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "account_for_embedding",
    "account_for_loss",
    "pipeline_layout",
)
"""The fields of a layout that place its layers on pipeline stages."""

_ALWAYS_NAMED = ("tp", "pp")  # a layout without them would read as incomplete
_CHOSEN = ("tp", "pp", "vpp", "cp", "ep", "mbs", "recompute", "fsdp")
_CHOSEN_IF_SET = (
    "account_for_embedding",
    "account_for_loss",
    "num_layers_in_last_pipeline_stage",
    "pipeline_layout",
    "etp",
    "recompute_modules",
)
_NOT_A_SETTING = ("source",)  # a citation: two layouts that differ in it only are the same
_DEFAULT = Layout()


def sizes(spec: Spec) -> dict[str, int]:
    """Every size of the run by its name, in the order of :data:`SIZES`; ``etp`` is 0 where it follows ``tp``."""
    return {name: spec.dp if name == "dp" else getattr(spec.layout, name) for name in SIZES}


def _split_words(layout: Layout, names: Iterable[str], always: Iterable[str] = ()) -> list[str]:
    """``TP4``, ``PP2``, ...: the sizes above 1, those in ``always``, and ETP where it is set."""
    values = [(name, getattr(layout, name)) for name in names]
    return [f"{k.upper()}{v}" for k, v in values if v > 1 or k in always or (k == "etp" and v)]


def describe(spec: Spec) -> str:
    """The layout in words, as the commands print it: ``TP4 PP2 DP8 MBS1 GBS512 recompute selective (mlp)``."""
    layout = spec.layout
    words = _split_words(layout, PARALLEL, _ALWAYS_NAMED)
    if layout.num_layers_in_last_pipeline_stage:
        words.append(f"(last stage of {layout.num_layers_in_last_pipeline_stage})")
    if layout.pipeline_layout:
        words.append(f"({layout.pipeline_layout})")
    words += [f"DP{spec.dp}", f"MBS{layout.mbs}", f"GBS{layout.gbs}"]
    if layout.schedule is not Schedule.auto:
        words.append(f"schedule {layout.schedule.value}")
    if layout.recompute is not Recompute.none:
        modules = f" ({', '.join(layout.recompute_modules)})" if layout.recompute_modules else ""
        words.append(f"recompute {layout.recompute.value}{modules}")
    if layout.fsdp is not Fsdp.none:
        words.append("Megatron-FSDP")
    return " ".join(words)


def short_name(layout: Layout) -> str:
    """The layout as a picture labels it: ``TP4 PP2 MBS1 selective(mlp)``."""
    words = [*_split_words(layout, ("tp", "pp", "vpp", "cp", "ep"), _ALWAYS_NAMED), f"MBS{layout.mbs}"]
    if layout.recompute is not Recompute.none:
        modules = f"({'+'.join(layout.recompute_modules)})" if layout.recompute_modules else ""
        words.append(layout.recompute.value + modules)
    return " ".join(words + (["FSDP"] if layout.fsdp is not Fsdp.none else []))


def describe_ranks(spec: Spec) -> str:
    """How the ranks of a run split its work, without the batch: ``TP4 PP2 DP8``, or ``one rank``."""
    words = _split_words(spec.layout, PARALLEL)
    if spec.dp > 1:
        words.append(f"DP{spec.dp}")
    if spec.layout.fsdp is not Fsdp.none:
        words.append("FSDP")
    return " ".join(words) or "one rank"


def _overrides(layout: Layout, always: Iterable[str], if_set: Iterable[str]) -> list[str]:
    named = [*always, *(name for name in if_set if getattr(layout, name) != getattr(_DEFAULT, name))]
    return [as_override(layout, name) for name in named]


def as_override(layout: Layout, name: str) -> str:
    """One field of the layout as ``key=value``."""
    return f"layout.{name}={text_of(getattr(layout, name))}"


def as_overrides(layout: Layout) -> list[str]:
    """The layout as ``key=value`` overrides that give it back on any recipe: every field but its source."""
    return _overrides(layout, (f.name for f in dataclasses.fields(Layout) if f.name not in _NOT_A_SETTING), ())


def chosen_overrides(layout: Layout) -> list[str]:
    """What the search chooses of a layout as ``key=value`` overrides: the rest is the user's own and stays."""
    return _overrides(layout, _CHOSEN, _CHOSEN_IF_SET)


def differences(before: Layout, after: Layout) -> list[str]:
    """The fields in which ``after`` differs, as overrides that give it back on a run with ``before``."""
    names = (f.name for f in dataclasses.fields(Layout) if f.name not in _NOT_A_SETTING)
    return [as_override(after, name) for name in names if getattr(before, name) != getattr(after, name)]


def key(layout: Layout, names: Iterable[str] | None = None) -> tuple[object, ...]:
    """A hashable key of the layout for caches: of all its settings, or of the fields ``names``."""
    if names is None:
        names = (f.name for f in dataclasses.fields(Layout) if f.name not in _NOT_A_SETTING)
    values = (getattr(layout, name) for name in names)
    return tuple(tuple(v) if isinstance(v, list) else v for v in values)


def with_sizes(layout: Layout, given: Mapping[str, Any]) -> Layout:
    """The layout with the sizes that a table's row or a file gives under their names; what is not a size is ignored."""
    found: dict[str, Any] = {name: int(given[name]) for name in SIZES if name in given and name != "dp"}
    return dataclasses.replace(layout, **found)


def on_one_rank(layout: Layout) -> Layout:
    """The same batch and options with every parallel size at 1 and an even pipeline."""
    return even_pipeline(dataclasses.replace(layout, tp=1, pp=1, vpp=1, cp=1, ep=1, etp=0, sp=None, fsdp=Fsdp.none))


def even_pipeline(layout: Layout) -> Layout:
    """The same layout with as many layers on every pipeline stage."""
    return dataclasses.replace(layout, **{name: getattr(_DEFAULT, name) for name in PLACEMENT})
