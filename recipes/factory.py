"""The factory of a recipe: its parameters, and the way from them to a checked recipe.

NeMo-Run splits the arguments of a factory at every comma, so all parameters are scalars.
"""

from __future__ import annotations

import functools
import inspect
import socket
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from slipway import configs, planner
from slipway.configs import Call, Model, Refusal, Spec
from slipway.configs.blend import prefixes, with_prefixes
from slipway.configs.errors import exit_on_refusal
from slipway.configs.schema import DataKind
from slipway.planner.layout import PARALLEL
from slipway.recipes.nemo_names import NEMO_PARAMETERS, change_built, nemo_overrides, renamed
from slipway.recipes.runtime.base import checked_base, tokenizer_of_base
from slipway.recipes.runtime.data_fingerprint import check_same_data
from slipway.recipes.runtime.run_dir import check_run_dir
from slipway.recipes.runtime.source import require_supported_pair

if TYPE_CHECKING:
    import nemo_run as run

# parameter -> (type, the Spec key that it sets). The first four have the names that NeMo's own factories give them.
PARAMETERS: dict[str, tuple[Any, str]] = {
    "dir": (Optional[str], "run.dir"),
    "name": (Optional[str], "name"),
    "num_nodes": (Optional[int], ""),
    "num_gpus_per_node": (Optional[int], ""),
    "gpu": (Optional[str], "gpu"),
    "precision": (Optional[str], "precision"),
    **{size: (Optional[int], f"layout.{size}") for size in (*PARALLEL, "mbs", "gbs", "seq_length")},
    "recompute": (Optional[str], "layout.recompute"),
    "fsdp": (Optional[str], "layout.fsdp"),
    "data": (Optional[str], ""),  # one .bin/.idx prefix, instructions, or mock
    "tokenizer": (Optional[str], "data.tokenizer"),
    "base": (Optional[str], "run.base"),
    "task": (Optional[str], "task"),
    "peft": (Optional[str], "peft"),
    "lora_rank": (Optional[int], "task.lora_rank"),
    "lora_alpha": (Optional[int], "task.lora_alpha"),
    "lora_targets": (Optional[str], ""),  # joined by +
    "seed": (Optional[int], "run.seed"),
    "max_steps": (Optional[int], "run.max_steps"),
    "checkpoint_every": (Optional[int], "run.checkpoint_every_n_steps"),
    "extend_schedule": (Optional[bool], "run.extend_schedule"),
    **NEMO_PARAMETERS,
}


@dataclass(frozen=True)
class Surroundings:
    """What a front door knows of a recipe beside the arguments of its factory.

    Attributes:
        overrides: keys of the Spec, as ``key=value``.
        on_cpu: whether a recipe is built for CPU ranks; None: a toy is, where this machine has no GPU.
        require: raises a Refusal for what the door does not let pass.
    """

    overrides: tuple[str, ...] = ()
    on_cpu: Callable[[Spec], bool] | None = None
    require: Callable[[configs.Resolved], None] | None = None


_NONE = Surroundings()
surroundings: ContextVar[Surroundings] = ContextVar("surroundings", default=_NONE)
"""Set by the ``nemo`` command while it calls a factory."""

CPU_PARAMETER_LIMIT = 50_000_000  # with more parameters, one step takes minutes on a laptop


def overrides(recipe: str, options: dict[str, Any]) -> list[str]:
    """Factory arguments as the ``key=value`` overrides that every command takes, after those of the surroundings."""
    around = list(surroundings.get().overrides)
    given = renamed({name: value for name, value in options.items() if value is not None})
    _require_one_name(given)
    keys = [f"{PARAMETERS[name][1]}={value}" for name, value in given.items() if PARAMETERS[name][1]]
    keys += nemo_overrides(given, has_mtp=bool(configs.headline(recipe)[0].mtp_num_layers))
    if "num_nodes" in given or "num_gpus_per_node" in given:
        default = configs.load(recipe, [*around, *(key for key in keys if key.startswith("gpu="))]).spec
        usual = min(default.gpus_per_node, default.gpus)
        nodes, per_node = int(given.get("num_nodes", 1)), int(given.get("num_gpus_per_node", usual))
        keys.append(f"gpus={nodes * per_node}")
        if per_node != default.gpus_per_node and (nodes > 1 or per_node > default.gpus_per_node):
            keys.append(f"cluster.gpus_per_node={per_node}")
    if "data" in given:
        keys.append("data=mock" if given["data"] == "mock" else f"data.paths=[{given['data']}]")
    if "lora_targets" in given:
        keys.append(f"task.lora_targets=[{given['lora_targets'].replace('+', ',')}]")
    return around + keys


def _require_one_name(given: dict[str, Any]) -> None:
    """Require that no two parameters set one key, of which one has NeMo's name.

    Raises:
        Refusal: the first two that do.
    """
    by_key: dict[str, str] = {}
    for name in given:
        key = PARAMETERS[name][1]
        if key and key in by_key:
            raise Refusal(f"{by_key[key]} and {name} both set {key}", "Give one of them.")
        by_key[key] = name


def gpu_here() -> bool:
    """Whether this machine has a GPU that torch can use."""
    import torch

    return torch.cuda.is_available()


def require_gpu(accelerator: str) -> None:
    """Require a GPU on this machine where Lightning's ``accelerator`` is ``gpu``.

    Raises:
        Refusal: there is none.
    """
    if accelerator == "gpu" and not gpu_here():
        raise Refusal(
            f"this recipe trains on GPUs, and torch finds none on {socket.gethostname()}",
            "Rehearse it here with: slipway rehearse RECIPE; or send it to a cluster with: slipway launch RECIPE "
            "cluster=YOURS.",
        )


def spec_of(recipe: str, options: dict[str, Any]) -> Spec:
    """The complete, legal spec that a factory call asks for, with absolute paths.

    Raises:
        Refusal: what makes it illegal, with the nearest legal change.
    """
    resolved = configs.load(recipe, overrides(recipe, options))
    if require := surroundings.get().require:
        require(resolved)
    if options.get("performance_mode"):
        spec, sets = planner.fastest(resolved)
        print(f"slipway: performance_mode sets {' '.join(sets) or 'nothing'}", file=sys.stderr, flush=True)
    else:
        spec = planner.complete(resolved)
    planner.require_legal(spec)
    return absolute(spec)


def absolute(spec: Spec) -> Spec:
    """``spec`` with absolute paths, because a job does not start in the folder from which it was submitted.

    Instructions are read with the tokenizer of the base, unless another is given.
    """

    def full(path: str) -> str:
        return str(Path(path).expanduser().resolve())

    base = full(spec.run.base) if spec.run.base else ""
    tokenizer, template = spec.data.tokenizer, spec.data.chat_template
    if not tokenizer and base and spec.data.kind is DataKind.instructions:
        tokenizer = tokenizer_of_base(Path(base))
    data = replace(
        with_prefixes(spec.data, full),
        tokenizer=full(tokenizer) if tokenizer and Path(tokenizer).exists() else tokenizer,
        chat_template=full(template) if template else "",
    )
    return replace(spec, run=replace(spec.run, dir=full(spec.run.dir), base=base), data=data)


def check_data(spec: Spec) -> None:
    """Check the files that a run reads.

    Raises:
        Refusal: data, a tokenizer or a base that is missing or incomplete, a vocabulary that is larger than the
            model's, or a base of another model.
    """
    from slipway.recipes.runtime.data_check import check_prefix, check_split, check_tokenizer
    from slipway.recipes.runtime.data_manifest import check_manifest

    if spec.run.base:
        checked_base(Path(spec.run.base), spec.model)
    elif spec.task.finetunes:
        raise Refusal(
            f"task={spec.task.name} trains a model further, and there is no base",
            "Give base=FOLDER: a run, or what slipway weights import wrote.",
        )
    if spec.data.kind is DataKind.instructions:
        from slipway.recipes.finetune.check import check_instructions

        check_instructions(spec)
        return
    for prefix in prefixes(spec.data):
        check_prefix(prefix)
        check_manifest(prefix, spec.model.vocab_size, spec.data.tokenizer)
        if not spec.data.validation_paths:
            check_split(prefix, spec.data.split)
    if spec.data.tokenizer:
        check_tokenizer(spec.data.tokenizer, spec.model.vocab_size, spec.name)


def build(recipe: str, **options: Any) -> run.Partial:
    """The ``run.Partial`` that trains ``recipe``.

    It depends on the arguments, the surroundings and this machine only: where nothing says where it goes, a toy is
    built for CPU ranks if there is no GPU here.
    """
    spec = spec_of(recipe, options)
    check_data(spec)
    decide = surroundings.get().on_cpu
    cpu = decide(spec) if decide else trains_on_cpu(spec) and not gpu_here()
    from slipway.recipes import build as builder

    check_run_dir(builder.run_dir(spec), spec)
    check_same_data(builder.run_dir(spec), spec)
    return change_built(builder.build(spec, cpu=cpu), options)


def trains_on_cpu(spec: Spec) -> bool:
    """Whether the model is a toy that a laptop can train."""
    return planner.parameters(spec).total <= CPU_PARAMETER_LIMIT


@functools.cache
def factory(recipe: str) -> Callable[..., Any]:
    """The factory of a recipe, as ``slipway.recipes.FAMILY.RECIPE`` offers it. Imports neither torch nor NeMo."""

    def call(*args: Any, **kwargs: Any) -> Any:
        options = dict(zip(PARAMETERS, args, strict=False)) | kwargs
        unknown = sorted(set(options) - set(PARAMETERS))
        if unknown:
            raise Refusal(f"{recipe} has no parameter {unknown[0]!r}; {configs.nearest(unknown[0], PARAMETERS)}")
        return build(recipe, **options)

    model, gpu, gpus = configs.headline(recipe)
    call.__name__ = call.__qualname__ = recipe
    call.__module__ = f"slipway.recipes.{model.family}"
    call.__doc__ = (
        f"Pretrain {recipe}: {', '.join(_features(model))}. By default on {gpus:,} x {gpu.upper()}.\n\n"
        f"Each parameter sets a key of the recipe (slipway.recipes.factory.PARAMETERS); slipway show {recipe} prints "
        f"the others.\n\nSource of the sizes: {model.source}."
    )
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=kind)
        for name, (kind, _) in PARAMETERS.items()
    ]
    call.__signature__ = inspect.Signature(parameters, return_annotation="run.Partial")  # type: ignore[attr-defined]
    return call


def _features(model: Model) -> list[str]:
    """A model in a few words: its size, and what is particular to it."""
    words = [
        f"{model.num_layers} layers",
        f"hidden size {model.hidden_size:,}",
        f"sequences of {model.seq_length:,} tokens",
    ]
    if model.is_mla:
        words.append("multi-latent attention")
    elif model.num_query_groups < model.num_attention_heads:
        words.append(f"{model.num_query_groups} query groups")
    if model.is_moe:
        shared = " and a shared one" if model.moe_shared_expert_intermediate_size else ""
        words.append(f"{model.moe_router_topk} of {model.num_moe_experts} experts{shared}")
    if model.is_moe and model.num_dense_layers:
        words.append(f"{model.num_dense_layers} dense layers")
    if model.mtp_num_layers:
        words.append("multi-token prediction")
    if model.tied:
        words.append("tied embeddings")
    return words


def at_front_door(recipe: str, task: Call = Call.pretrain) -> Callable[..., Any]:
    """A factory as the ``nemo`` command calls it: a refusal is one sentence and exit code 2.

    Args:
        task: the command. ``finetune`` trains LoRA where no argument says otherwise, as NeMo's own factories.
    """
    function = factory(recipe)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with exit_on_refusal():
            require_supported_pair()
            options = dict(zip(PARAMETERS, args, strict=False)) | kwargs
            return function(**options if task is Call.pretrain else finetuned(options))

    return call


def finetuned(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a factory that finetunes: LoRA, unless they say otherwise."""
    said = any(options.get(name) is not None for name in ("task", "peft", "peft_scheme"))
    return options if said else options | {"task": "lora"}
