"""The parts of a recipe, before it starts (configurations) and when it starts (objects), under the same names."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any

import fiddle as fdl

from slipway.configs import Refusal


@dataclass(frozen=True)
class Parts:
    """What ``llm.pretrain`` or ``llm.finetune`` receives. Each attribute has the arguments of its class as attributes.

    Attributes:
        model: the TransformerConfig.
        strategy: the MegatronStrategy, and ``ddp`` its DistributedDataParallelConfig.
        plugin: the mixed-precision plugin.
        optim: the OptimizerConfig, and ``schedule`` the scheduler of the learning rate.
        data: the data module, and ``tokenizer`` its tokenizer, with which a model is pretrained.
        trainer: the arguments of Lightning's trainer, and ``callbacks`` its callbacks.
        checkpoint: the checkpoint callback of ``log``, the NeMoLogger.
        resume: the AutoResume.
        peft: the adapter; None where the weights themselves train.
    """

    model: Any
    strategy: Any
    ddp: Any
    plugin: Any
    optim: Any
    schedule: Any
    data: Any
    tokenizer: Any
    trainer: Any
    callbacks: list[Any]
    log: Any
    checkpoint: Any
    resume: Any
    peft: Any = None

    @property
    def cpu(self) -> bool:
        """Whether the ranks are CPU ranks."""
        return value(self.trainer, "accelerator") == "cpu"


def kind_of(part: Any) -> type:
    """The class of a part."""
    return part.__fn_or_cls__ if isinstance(part, fdl.Buildable) else type(part)


_READ: ContextVar[set[tuple[int, str]] | None] = ContextVar("read", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[set[tuple[int, str]]]:
    """Which arguments are read inside, as pairs of a part's id and an argument's name."""
    read: set[tuple[int, str]] = set()
    token = _READ.set(read)
    try:
        yield read
    finally:
        _READ.reset(token)


def value(part: Any, name: str, default: Any = None) -> Any:
    """An argument of a part, or ``default`` where the part has no such argument or no value of it."""
    if (read := _READ.get()) is not None:
        read.add((id(part), name))
    try:
        found = getattr(part, name, default)
    except ValueError:  # of fiddle, for a field whose default a function makes
        fields = dataclasses.fields(kind_of(part))
        found = next(field.default_factory() for field in fields if field.name == name)  # type: ignore[misc]
    return default if found is dataclasses.MISSING or "MISSING" in type(found).__name__ else found


def arguments_of(part: Any) -> Any:
    """The arguments of a part that is built, where NeMo keeps them: an object may hide or change what it was given."""
    return getattr(part, "__io__", part)


def choice(kind: type[Enum], word: Any) -> Any:
    """The member of ``kind`` that ``word`` names; any other word as it is, which the schema then refuses."""
    try:
        return kind(word)
    except ValueError:
        return word


def of_recipe(recipe: Any) -> Parts:
    """The parts of a recipe that is configured.

    Raises:
        Refusal: an argument is not the configuration of an object.
    """
    trainer = _configured(recipe, "trainer")
    strategy = _configured(trainer, "strategy", "trainer.")
    optimizer, data = _configured(recipe, "optim"), _configured(recipe, "data")
    model = _configured(recipe, "model")
    log = value(recipe, "log")
    return Parts(
        model=_configured(model, "config", "model."),
        strategy=strategy,
        ddp=_configured(strategy, "ddp", "trainer.strategy."),
        plugin=_configured(trainer, "plugins", "trainer."),
        optim=_configured(optimizer, "config", "optim."),
        schedule=value(optimizer, "lr_scheduler"),
        data=data,
        tokenizer=value(data, "tokenizer"),
        trainer=trainer,
        callbacks=list(value(trainer, "callbacks") or []),
        log=log,
        checkpoint=value(log, "ckpt"),
        resume=value(recipe, "resume"),
        peft=value(recipe, "peft"),
    )


def _configured(parent: Any, name: str, where: str = "") -> Any:
    part = value(parent, name)
    if not isinstance(part, fdl.Buildable):
        raise Refusal(
            f"{where}{name}={part!r} cannot be judged: the recipe has the configuration of an object there",
            f"Change its arguments instead, as in {where}{name}.ARGUMENT=VALUE.",
        )
    return part


def of_run(*, model: Any, data: Any, trainer: Any, log: Any, resume: Any, optim: Any, peft: Any = None) -> Parts:
    """The parts of a recipe whose objects are built; nothing has connected them yet."""
    plugin = trainer.precision_plugin
    types = getattr(plugin, "dtype_config", None)
    return Parts(
        model=model.config,
        strategy=trainer.strategy,
        ddp=trainer.strategy.ddp_config,
        plugin=SimpleNamespace(**(vars(types) if types else {}), precision=plugin.precision),
        optim=optim.config,
        schedule=getattr(optim, "lr_scheduler", None),
        data=data,
        tokenizer=arguments_of(data.tokenizer),
        trainer=arguments_of(trainer),
        callbacks=list(trainer.callbacks),
        log=log,
        checkpoint=getattr(log, "ckpt", None),
        resume=resume,
        peft=peft,
    )
