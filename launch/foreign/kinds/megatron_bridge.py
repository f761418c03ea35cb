"""A configuration of Megatron-Bridge: its run_config.yaml, or a recipe's function, whose source is read and not run."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from slipway.configs import Refusal
from slipway.configs.files import ROOT
from slipway.configs.load import override
from slipway.launch.foreign.bridge.keys import PATHS
from slipway.launch.foreign.bridge.run import spec_of
from slipway.launch.foreign.bridge.source import HF, Lost, assignments
from slipway.launch.foreign.reading import (
    NO_RUN,
    USUAL_GPU,
    File,
    Reading,
    Request,
    gpu_in,
    require_whole,
    run_name,
    yaml_of,
)
from slipway.launch.foreign.terms import PathTerms
from slipway.launch.foreign.values import Values, by_head, kinds_of
from slipway.planner.choose import split_layers

NAME = "Megatron-Bridge configuration"
VERSION = "megatron-bridge 0.3.1, with the rules of megatron-core 0.15.3"
_MODULE = re.compile(r"megatron\.bridge\.[\w.]+:[A-Za-z_]\w*")
_SIGNS = re.compile(r"_target_:\s*megatron\.bridge\.")
_THEIRS = re.compile(r"(model|train|ddp|optimizer|comm_overlap|mixed_precision|scheduler)\.[\w.]+=")


def recognizes(file: File) -> bool:
    """Whether the file is a run_config.yaml."""
    return file.path.suffix in (".yaml", ".yml") and bool(_SIGNS.search(file.text))


def is_target(name: str) -> bool:
    """Whether NAME is a recipe's function: of the package, or of a file that imports it."""
    if _MODULE.fullmatch(name):
        return True
    path, colon, function = name.rpartition(":")
    if not colon or not path.endswith(".py") or not Path(path).is_file() or "(" in function:
        return False
    return "megatron.bridge" in Path(path).read_text(errors="replace")


def read(file: File, request: Request) -> Reading:
    """The run of a run_config.yaml."""
    require_whole(file)
    tree = yaml_of(file)
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise Refusal(f"{file.path} has no model", "Give a run_config.yaml of Megatron-Bridge.")
    kind = str(tree["model"].get("_target_", ""))
    if re.search(r"T5|VL|Vision|Bert|Neva|Flux|Wan", kind):
        named = kind.rpartition(".")[2]
        raise Refusal(f"{file.path} has a {named}, which cannot be planned", "Give a decoder-only model.", NO_RUN)
    return _reading(file.path, run_name(file), tree, [], request)


def read_target(name: str, request: Request) -> Reading:
    """The run of a recipe's function, from its source.

    Raises:
        Refusal: there is no such function, or what it says is incomplete.
    """
    module, _, function = name.rpartition(":")
    found = assignments(_file_of(module), function)
    return _reading(Path(name), function, found.tree, found.unknown, request)


def _file_of(module: str) -> Path:
    if module.endswith(".py"):
        return Path(module)
    names = module.split(".")
    found = importlib.util.find_spec("megatron")
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder).joinpath(*names[1:]).with_suffix(".py")
        if path.is_file():
            return path
    raise Refusal(
        f"{module} is of Megatron-Bridge, which is not installed here (it needs megatron-core 0.16, Slipway 0.15.3)",
        "Give the path of its file: pip download --no-deps megatron-bridge==0.3.1, unzip it, and check "
        "megatron/bridge/recipes/llama/llama3.py:llama3_8b_pretrain_config.",
    )


def _reading(path: Path, name: str, tree: dict[str, Any], unknown: list[Lost], request: Request) -> Reading:
    theirs = [each for each in request.overrides if _THEIRS.match(each) and not _is_ours(each)]
    for each in theirs:
        _override(tree, each)
    request = Request(tuple(each for each in request.overrides if each not in theirs), request.settings)
    values, assumed = Values(tree, path.name), list[str]()
    named = gpu_in(name)
    if not {each.partition("=")[0] for each in request.overrides} & {"gpu", "cluster"}:
        why = "as its name has it" if named else "the file does not say; gpu= gives another"
        assumed.append(f"{(named or USUAL_GPU).upper()}: {why}")
    spec = spec_of(values, re.sub(r"_(pretrain_)?config$", "", name), named or USUAL_GPU, request, assumed)
    if any("pipeline_model_parallel_layout" in each.text for each in unknown) and not spec.layout.pipeline_layout:
        spec = split_layers(replace(spec, layout=replace(spec.layout, split_unevenly=True)))
        assumed.append("stages as even as possible: what computes model.pipeline_model_parallel_layout is not read")
    resolved = override(spec, request.overrides)
    rates = [
        values.number(f"model.{rate}_dropout", 0.0) for rate in ("hidden", "attention") if f"model.{HF}" not in values
    ]
    table = ROOT / "megatron_bridge" / "bearing.yaml"
    found = values.account(table)
    kinds = kinds_of(table)
    lost = [each.text for each in unknown if by_head(each.path, kinds) != "irrelevant"]
    return Reading(
        kind=NAME,
        version=VERSION,
        path=path,
        resolved=resolved,
        used=found.used,
        irrelevant=found.irrelevant,
        unknown=[*found.unknown, *lost],
        not_modelled=found.not_modelled,
        assumed=assumed,
        dropout=any(rates),
        terms=PathTerms(PATHS),
    )


def _is_ours(text: str) -> bool:
    """Whether an override of a model is one of our keys."""
    from slipway.configs.load import schema_keys

    return text.partition("=")[0] in schema_keys()


def _override(tree: dict[str, Any], text: str) -> None:
    from slipway.configs.overrides import value_of

    path, _, value = text.partition("=")
    *parents, last = path.split(".")
    node = tree
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    node[last] = value_of(path, value)
