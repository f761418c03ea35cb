"""A configured recipe of NeMo 2.0 as a Spec, with an account of its arguments. Needs NeMo."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import fiddle as fdl
import nemo_run as run
from megatron.core.distributed import DistributedDataParallelConfig

from slipway import configs
from slipway.configs import Adapter, Call, Layout, Optimizer, Refusal, Run, Spec, Task
from slipway.configs.load import record_of
from slipway.configs.schema.optimizer import LrSchedule
from slipway.launch.export.recipe_file import rebuilt
from slipway.launch.foreign.megatron.run import any_adam
from slipway.launch.foreign.nemo.account import account
from slipway.launch.foreign.nemo.model import model_of
from slipway.launch.foreign.reading import USUAL_GPU
from slipway.recipes.readback.layout import read_layout
from slipway.recipes.readback.levers import read_levers
from slipway.recipes.readback.optimizer import read_optimizer
from slipway.recipes.readback.parts import Parts, kind_of, of_recipe, recorded, value
from slipway.recipes.readback.precision import read_precision

_SHAPES = {"CosineAnnealingScheduler": LrSchedule.cosine, "WarmupAnnealingScheduler": LrSchedule.linear}
ADAPTERS = ("LoRA", "DoRA", "CanonicalLoRA")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "none": None}


def configured(target: dict[str, Any]) -> Any:
    """The recipe that a request names.

    Raises:
        Refusal: there is none, or it is none of NeMo's.
    """
    what = target["what"]
    recipe = rebuilt(target["tree"]) if "tree" in target else _function(target)(**target["arguments"])
    if not isinstance(recipe, fdl.Buildable) or not hasattr(recipe, "trainer"):
        kind = getattr(getattr(recipe, "__fn_or_cls__", None), "__name__", type(recipe).__name__)
        raise Refusal(f"{what} gives a {kind}, and not a recipe", "Give a function that returns a run.Partial.")
    for path, text in target["changes"].items():
        _set(recipe, path, text)
    return recipe


def _function(target: dict[str, Any]) -> Any:
    name = target["module"]
    if name.endswith(".py"):
        path = Path(name).resolve()
        sys.path.insert(0, str(path.parent))
        found = importlib.util.spec_from_file_location(path.stem, path)
        assert found and found.loader
        module = importlib.util.module_from_spec(found)
        sys.modules[path.stem] = module
        found.loader.exec_module(module)
    else:
        module = importlib.import_module(name)
    if not hasattr(module, target["function"]):
        functions = [key for key, item in vars(module).items() if callable(item) and not key.startswith("_")]
        raise Refusal(f"{name} has no function {target['function']}; {configs.nearest(target['function'], functions)}")
    return getattr(module, target["function"])


def _set(recipe: Any, path: str, text: str) -> None:
    """Set an argument of the recipe by its path, as NeMo-Run's command line does."""
    *parents, name = path.split(".")
    part = recipe
    for parent in parents:
        part = getattr(part, parent, None)
        if not isinstance(part, fdl.Buildable):
            raise Refusal(f"{path}={text}: the recipe has no {parent} to change", "Check the path.")
    try:
        setattr(part, name, _literal(text))
    except (AttributeError, TypeError) as error:
        raise Refusal(f"{path}={text} cannot be set: {error}", "Check the path.") from None


def _literal(text: str) -> Any:
    from slipway.configs.overrides import value_of

    return _WORDS.get(text.lower(), text) if text.lower() in _WORDS else value_of("value", text)


def found_in(recipe: Any, what: str, name: str) -> dict[str, Any]:
    """The answer for a recipe: its Spec as a record, and what became of its arguments.

    Raises:
        Refusal: it cannot be planned.
    """
    assumed: list[str] = []
    with recorded() as read:
        parts = _parts(recipe, what)
        spec = _spec(recipe, parts, what, name, assumed)
    devices, nodes = (value(parts.trainer, name, 1) for name in ("devices", "num_nodes"))
    counted = isinstance(devices, int) and isinstance(nodes, int) and devices > 0 and nodes > 0
    spec = replace(spec, gpus=devices * nodes if counted else 1)
    return {
        "spec": record_of(spec),
        "gpus": spec.gpus if counted else 0,
        "assumed": assumed,
        "advice": [tuple(found) for found in _defects(parts, spec)],
        "dropout": any(value(parts.model, name, 0.0) for name in ("hidden_dropout", "attention_dropout")),
        **account(recipe, read),
    }


def _parts(recipe: Any, what: str) -> Parts:
    """The parts, with what NeMo's strategy makes of ``ddp="megatron"`` and the trainer of a list of one plugin."""
    plugins = value(recipe.trainer, "plugins")
    if isinstance(plugins, list) and len(plugins) == 1:
        recipe.trainer.plugins = plugins[0]
    strategy = value(recipe.trainer, "strategy")
    if kind_of(strategy).__name__ != "MegatronStrategy":
        named = kind_of(strategy).__name__ if isinstance(strategy, fdl.Buildable) else strategy
        raise Refusal(f"{what} trains with {named}, which cannot be planned", "Give a recipe with a MegatronStrategy.")
    if not isinstance(value(strategy, "ddp"), fdl.Buildable):
        strategy.ddp = run.Config(DistributedDataParallelConfig, check_for_nan_in_grad=True)
    return of_recipe(recipe)


def _spec(recipe: Any, parts: Parts, what: str, name: str, assumed: list[str]) -> Spec:
    model = model_of(parts, name, what, assumed)
    base = Spec(
        name=name,
        model=model,
        gpu=configs.gpu(USUAL_GPU),
        precision=configs.precision("bf16"),
        optim=any_adam(),
        data=configs.Data(name="mock"),
        cluster=configs.Cluster(name="file", executor="local"),
        run=Run(max_steps=max(int(value(parts.trainer, "max_steps", 0) or 0), 1)),
        task=_task(recipe, what, assumed),
    )
    plugin = parts.plugin
    if str(value(plugin, "precision")).startswith("16"):
        assumed.append("fp16 is planned as bf16")
        plugin.precision = "bf16-mixed"
    precision = configs.precision("nvfp4") if value(plugin, "fp4") else read_precision(parts, base.precision)
    layout = _with_overlap(read_layout(parts, base), parts)
    if (tokens := value(parts.data, "seq_length", model.seq_length)) != model.seq_length:
        assumed.append(
            f"sequences of {tokens:,} tokens, as data.seq_length has it (model.config: {model.seq_length:,})"
        )
        layout = replace(layout, seq_length=tokens)
    gpus = 1
    return replace(
        base,
        precision=precision,
        layout=layout,
        levers=read_levers(parts, base, layout, gpus),
        optim=_optimizer(parts, base),
    )


def _task(recipe: Any, what: str, assumed: list[str]) -> Task:
    function = kind_of(recipe).__name__
    if function not in (Call.pretrain.value, Call.finetune.value):
        if function in ("validate", "generate", "evaluate", "ptq", "distill", "prune"):
            raise Refusal(f"{what} calls {function}, and only training can be planned", "Give a recipe that trains.")
        assumed.append(f"{function} trains as pretrain does")
        return configs.task("pretrain")
    if function == Call.pretrain.value:
        return configs.task("pretrain")
    adapter = value(recipe, "peft")
    if adapter is None:
        return Task(name="finetune", call=Call.finetune)
    kind = kind_of(adapter).__name__
    if kind not in ADAPTERS:
        raise Refusal(f"{what} has the adapter {kind}, which cannot be planned", f"Use one of {', '.join(ADAPTERS)}.")
    if kind != ADAPTERS[0]:
        assumed.append(f"{kind} is planned as LoRA of the same rank")
    return Task(name="lora", call=Call.finetune, adapter=Adapter.lora, lora_rank=int(value(adapter, "dim", 32)))


def _with_overlap(layout: Layout, parts: Parts) -> Layout:
    """The layout with what MegatronCommOverlapCallback, where there is one, sets before training."""
    overlap = next((each for each in parts.callbacks if kind_of(each).__name__ == "MegatronCommOverlapCallback"), None)
    if overlap is None:
        return layout
    wanted = bool(value(overlap, "tp_comm_overlap"))
    layout = replace(layout, tp_comm_overlap=wanted and layout.tp > 1 and layout.sequence_parallel)
    if not layout.distributed_optimizer:
        return layout
    return replace(  # both are on, unless the callback is told otherwise
        layout,
        overlap_grad_reduce=value(overlap, "overlap_grad_reduce") is not False,
        overlap_param_gather=value(overlap, "overlap_param_gather") is not False,
    )


def _optimizer(parts: Parts, base: Spec) -> Optimizer:
    """The optimizer, with NeMo's schedule of the learning rate."""
    found, schedule = read_optimizer(parts, base, base.run.max_steps), parts.schedule
    if value(schedule, "stages") is not None:
        return found
    shape = _SHAPES.get(kind_of(schedule).__name__) if schedule is not None else None
    if shape is None:
        return replace(found, schedule=LrSchedule.constant, min_lr=found.lr)
    steps = int(value(schedule, "max_steps", 0) or 0)
    warmup = int(value(schedule, "warmup_steps", 0) or 0)
    ends = steps if steps > warmup and steps != 10 else 0  # 10 is the default, which the trainer's steps replace
    low = float(value(schedule, "min_lr", 0.0) or 0.0)
    return replace(found, schedule=shape, warmup_steps=warmup, decay_steps=ends, min_lr=min(low, found.lr))


class Defect(NamedTuple):
    """Something that is wrong with a recipe, and which no Spec holds."""

    rule: str
    message: str
    fix: str


def _defects(parts: Parts, spec: Spec) -> Iterator[Defect]:
    """Defects of NeMo that a recipe must avoid and Slipway's recipes do (docs/defects.md)."""
    layout, config = spec.layout, parts.model
    if (batches := value(parts.trainer, "accumulate_grad_batches", 1)) != 1:
        yield Defect(
            "accumulate-grad-batches",
            f"trainer.accumulate_grad_batches={batches}: Megatron-Core accumulates micro-batches itself",
            "Leave it at 1 and give a larger data.global_batch_size.",
        )
    overlap = any(kind_of(each).__name__ == "MegatronCommOverlapCallback" for each in parts.callbacks)
    if layout.pp == 2 and layout.vpp > 1 and not overlap and not value(config, "overlap_p2p_comm"):
        yield Defect(
            "interleaved-p2p",
            "an interleaved pipeline of 2 stages with batched point-to-point sends trains on wrong gradients without "
            "an error (Megatron-LM issues 750 and 1450)",
            "Add MegatronCommOverlapCallback, or set model.config.overlap_p2p_comm=True and "
            "model.config.batch_p2p_comm=False.",
        )
    if spec.model.is_moe and layout.cp > 1 and spec.model.moe_aux_loss_coeff:
        yield Defect(
            "aux-loss-cp",
            f"megatron-core 0.15 divides the gradient of the load-balancing loss by the {layout.cp} context-parallel "
            "ranks (docs/defects.md)",
            f"Set model.config.moe_aux_loss_coeff={spec.model.moe_aux_loss_coeff * layout.cp:g}.",
        )
