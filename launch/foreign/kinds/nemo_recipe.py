"""A recipe of NeMo 2.0: one of NeMo's own (``nemo:llama3_8b``), a function that returns one, or its export as YAML.

Recipes are Python: they are configured in a process of their own. This module imports no NeMo.
"""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from slipway.configs import Refusal, nearest
from slipway.configs.files import ROOT, parse_yaml
from slipway.configs.load import override, spec_from_record
from slipway.configs.overrides import value_of
from slipway.launch.foreign.isolated import answers
from slipway.launch.foreign.reading import USUAL_GPU, File, Reading, Request, require_whole, run_name, yaml_of
from slipway.launch.foreign.terms import PathTerms
from slipway.planner.rules.registry import Framework, Violation

NAME = "NeMo 2.0 recipe"
_CHILD = "slipway.launch.foreign.nemo.child"
CPU_S = 60  # of a recipe, after NeMo's import; NeMo's own take less than one
WALL_S = 120  # of a recipe that waits
_FACTORY = re.compile(r"nemo:(?P<name>\w+)(?::(?P<task>pretrain|finetune))?(?:\((?P<arguments>.*)\))?")
_FUNCTION = re.compile(
    r"(?P<module>[\w./-]+\.py|[A-Za-z_]\w*(?:\.\w+)*):(?P<function>[A-Za-z_]\w*)(?:\((?P<arguments>.*)\))?"
)
_TARGET = re.compile(r"^_target_\s*:", re.MULTILINE)
_THEIRS = re.compile(r"(trainer|model\.config|optim\.(config|lr_scheduler)|log|resume|peft|data\.\w+_batch_size)(\.|=)")
"""Overrides that are meant for NeMo's recipe: no key of ours begins so."""
NOT_OF_NEMO = frozenset({"planned-only", "rope-scaling", "fsdp-resume"})
"""Rules about what Slipway's own builder makes of a run."""
PATHS = {
    "layout.tp": "trainer.strategy.tensor_model_parallel_size",
    "layout.pp": "trainer.strategy.pipeline_model_parallel_size",
    "layout.vpp": "trainer.strategy.virtual_pipeline_model_parallel_size",
    "layout.cp": "trainer.strategy.context_parallel_size",
    "layout.ep": "trainer.strategy.expert_model_parallel_size",
    "layout.etp": "trainer.strategy.expert_tensor_parallel_size",
    "layout.sp": "trainer.strategy.sequence_parallel",
    "layout.mbs": "data.micro_batch_size",
    "layout.gbs": "data.global_batch_size",
    "layout.seq_length": "model.config.seq_length and data.seq_length",
    "layout.recompute": "model.config.recompute_granularity",
    "layout.recompute_modules": "model.config.recompute_modules",
    "layout.recompute_method": "model.config.recompute_method",
    "layout.recompute_num_layers": "model.config.recompute_num_layers",
    "layout.fsdp": "trainer.strategy.fsdp",
    "layout.distributed_optimizer": "optim.config.use_distributed_optimizer",
    "layout.overlap_grad_reduce": "trainer.strategy.ddp.overlap_grad_reduce",
    "layout.overlap_param_gather": "trainer.strategy.ddp.overlap_param_gather",
    "layout.dispatcher": "model.config.moe_token_dispatcher_type",
    "layout.pipeline_layout": "trainer.strategy.pipeline_model_parallel_layout",
    "layout.num_layers_in_first_pipeline_stage": "trainer.strategy.num_layers_in_first_pipeline_stage",
    "layout.num_layers_in_last_pipeline_stage": "trainer.strategy.num_layers_in_last_pipeline_stage",
    "layout.account_for_embedding": "trainer.strategy.account_for_embedding_in_pipeline_split",
    "layout.account_for_loss": "trainer.strategy.account_for_loss_in_pipeline_split",
    "layout.moe_expert_capacity_factor": "model.config.moe_expert_capacity_factor",
    "layout.moe_pad_expert_input_to_capacity": "model.config.moe_pad_expert_input_to_capacity",
    "layout.attention_backend": "model.config.attention_backend",
    "layout.cuda_graphs": "model.config.enable_cuda_graph",
    "layout.fused_cross_entropy": "model.config.cross_entropy_loss_fusion",
    "layout.optimizer_cpu_offload": "optim.config.optimizer_cpu_offload",
    "precision.fp8_param_gather": "trainer.plugins.fp8_param_gather",
    "optim.precision_aware": "optim.config.use_precision_aware_optimizer",
    "model.num_layers": "model.config.num_layers",
    "model.num_query_groups": "model.config.num_query_groups",
    "gpus": "trainer.devices x trainer.num_nodes",
}


class Asked(NamedTuple):
    """What the child is asked for one recipe."""

    target: dict[str, Any]
    unknown: list[str]
    """What of a file was left out, because its class is of no package that is imported."""


def is_target(name: str) -> bool:
    """Whether NAME on a command line is a function: ``nemo:NAME``, ``module:function``, ``file.py:function``."""
    return bool(_FACTORY.fullmatch(name) or _FUNCTION.fullmatch(name))


def recognizes(file: File) -> bool:
    """Whether the file is a recipe's export: YAML with a ``_target_`` at its top."""
    return file.path.suffix in (".yaml", ".yml") and bool(_TARGET.search(file.text))


def read(file: File, request: Request) -> Reading:
    """The run of a recipe's export."""
    require_whole(file)
    return _readings([(file.path, _of_file(file, request), request)])[0]


def read_target(name: str, request: Request) -> Reading:
    """The run of a function's recipe.

    Raises:
        Refusal: there is no such function, it fails, or what it returns cannot be planned.
    """
    return _readings([(Path(name), asked_of(name, request), request)])[0]


def asked_of(name: str, request: Request) -> Asked:
    """The request for a function's recipe.

    Raises:
        Refusal: NeMo has no recipe of the name, or there is no such file.
    """
    found = _FACTORY.fullmatch(name) or _FUNCTION.fullmatch(name)
    assert found
    called = found["name"] if name.startswith("nemo:") else found["function"]
    target: dict[str, Any] = {"what": name, "name": called, "arguments": _arguments(found["arguments"] or "", name)}
    if name.startswith("nemo:"):
        _require_factory(found["name"])
        target["module"] = f"nemo.collections.llm.recipes.{found['name']}"
        target["function"] = f"{found['task'] or 'pretrain'}_recipe"
    else:
        target |= {"module": found["module"], "function": found["function"]}
        if found["module"].endswith(".py") and not Path(found["module"]).is_file():
            raise Refusal(f"there is no file {found['module']}", "Give FILE.py:FUNCTION.")
    return Asked(target | {"changes": _changes(request)}, [])


def _arguments(text: str, name: str) -> dict[str, Any]:
    """The arguments of ``function(a=1,b=c)``."""
    made = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise Refusal(f"{name}: {part} is not NAME=VALUE", "Write nemo:llama3_8b(num_nodes=2).")
        made[key.strip()] = value_of(key, value.strip().strip("'\""))
    return made


def _changes(request: Request) -> dict[str, str]:
    return dict(each.partition("=")[::2] for each in request.overrides if _THEIRS.match(each))


def _require_factory(name: str) -> None:
    known = factories()
    if name not in known:
        raise Refusal(f"NeMo has no recipe {name!r}; {nearest(name, known)}")


def factories() -> list[str]:
    """The modules of NeMo's recipes, without importing NeMo.

    Raises:
        Refusal: NeMo is not installed.
    """
    folder = _require_nemo() / "collections" / "llm" / "recipes"
    texts = {path.stem: path.read_text() for path in folder.glob("*.py")}
    return sorted(name for name, text in texts.items() if re.search(r"^def (pretrain|finetune)_recipe\(", text, re.M))


def _require_nemo() -> Path:
    """NeMo's folder."""
    found = importlib.util.find_spec("nemo")
    if found is None or not found.submodule_search_locations:
        raise Refusal(
            "a recipe of NeMo is read with NeMo, which is not installed",
            "Install it with: make setup, or pip install 'nemo-slipway[nemo]' with requirements/lock.txt.",
        )
    return Path(found.submodule_search_locations[0])


def _of_file(file: File, request: Request) -> Asked:
    tree = yaml_of(file)
    packages = frozenset(parse_yaml(ROOT / "nemo" / "bearing.yaml")["packages"].split())
    unknown: list[str] = []
    if not isinstance(tree, dict) or _foreign(tree, packages):
        raise Refusal(
            f"{file.path} is not the recipe of a NeMo run", "Give what nemo --to-yaml or slipway export wrote."
        )
    kept = _known(tree, packages, "", unknown)
    return Asked({"what": str(file.path), "name": run_name(file), "tree": kept, "changes": _changes(request)}, unknown)


def _foreign(node: Any, packages: frozenset[str]) -> bool:
    return isinstance(node, dict) and str(node.get("_target_", "nemo")).partition(".")[0] not in packages


def _known(node: Any, packages: frozenset[str], path: str, unknown: list[str]) -> Any:
    """A node without the classes of other packages, each of which is added to ``unknown``."""
    if isinstance(node, list):
        unknown += [f"{path} {item['_target_']}" for item in node if _foreign(item, packages)]
        return [_known(item, packages, path, unknown) for item in node if not _foreign(item, packages)]
    if not isinstance(node, dict):
        return node
    kept = {}
    for key, value in node.items():
        where = f"{path}.{key}".lstrip(".")
        if _foreign(value, packages):
            unknown.append(f"{where} {value['_target_']}")
        else:
            kept[key] = _known(value, packages, where, unknown)
    return kept


def read_targets(named: list[tuple[str, Request]]) -> list[Reading | Refusal]:
    """The runs of several functions, for one import of NeMo; a Refusal where one cannot be read."""
    asked = [(Path(name), asked_of(name, request), request) for name, request in named]
    return _answered(asked)


def _readings(asked: list[tuple[Path, Asked, Request]]) -> list[Reading]:
    found = _answered(asked)
    if isinstance(found[0], Refusal):
        raise found[0]
    return [each for each in found if isinstance(each, Reading)]


def _answered(asked: list[tuple[Path, Asked, Request]]) -> list[Reading | Refusal]:
    _require_nemo()
    what = asked[0][1].target["what"] if len(asked) == 1 else f"{len(asked)} recipes"
    targets = [each.target for _, each, _ in asked]
    out: list[Reading | Refusal] = []
    for (path, each, request), answer in zip(
        asked, answers(_CHILD, {"what": what, "targets": targets, "cpu_s": CPU_S, "wall_s": WALL_S}), strict=True
    ):
        try:
            out.append(_reading(path, each, request, answer))
        except Refusal as refusal:
            out.append(refusal)
    return out


def _reading(path: Path, asked: Asked, request: Request, answer: dict[str, Any]) -> Reading:
    if "refused" in answer:
        raise Refusal(answer["refused"], answer["fix"])
    ours = [each for each in request.overrides if not _THEIRS.match(each)]
    given = {each.partition("=")[0] for each in ours}
    assumed = list(answer["assumed"])
    if not answer["gpus"] and not given & {"gpus", "nodes"}:
        raise Refusal(
            f"{asked.target['what']} does not say on how many GPUs it runs", "Give gpus=, for example gpus=64."
        )
    if not given & {"gpu", "cluster"}:
        assumed.append(f"{USUAL_GPU.upper()}: the recipe does not say; gpu= gives another")
    return Reading(
        kind=NAME,
        version=f"nemo_toolkit {version('nemo_toolkit')}",
        path=path,
        resolved=override(spec_from_record(answer["spec"]), ours),
        used=answer["used"],
        irrelevant=answer["irrelevant"],
        unknown=[*answer["unknown"], *asked.unknown],
        not_modelled=answer["not_modelled"],
        assumed=assumed,
        dropout=answer["dropout"],
        lifted=NOT_OF_NEMO,
        framework=Framework.nemo,
        advice=[Violation(*found) for found in answer["advice"]],
        terms=PathTerms(PATHS),
    )
