"""Judge what a recipe has become: by the rules and the memory of ``slipway check``, and against its own record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from slipway import planner
from slipway.configs import Refusal, Spec
from slipway.configs.load import contradiction, record_of, spec_from_record
from slipway.recipes.readback.contradictions import require_one_value
from slipway.recipes.readback.flat import flatten
from slipway.recipes.readback.parts import Parts, kind_of, of_recipe, of_run
from slipway.recipes.readback.spec import read_back
from slipway.recipes.runtime.kernels import require_kernels
from slipway.recipes.runtime.record import RunRecord

_NOT_COMPARED = "trainer.callbacks.RunRecord"  # the record itself


@dataclass(frozen=True)
class Judged:
    """A recipe that is legal and fits.

    Attributes:
        spec: what it trains.
        changed: how that differs from what its factory promised, one ``key old -> new`` each.
        unjudged: settings that no key of a Spec expresses, so that no rule and no memory estimate covers them.
    """

    spec: Spec
    changed: list[str]
    unjudged: list[str]


def record_callback(callbacks: list[Any]) -> Any:
    """The callback that carries a recipe's record; None where there is none, as in recipes that are not Slipway's."""
    return next((each for each in callbacks if kind_of(each) is RunRecord), None)


def promised(callback: Any) -> Spec:
    """The Spec that a recipe's record holds."""
    return spec_from_record(callback.record)


def judge_recipe(recipe: Any) -> Judged:
    """Judge a configured recipe after its overrides, and write what it is into its record.

    Raises:
        Refusal: it is illegal, too large, or contradicts itself.
    """
    parts = of_recipe(recipe)
    callback = record_callback(parts.callbacks)
    if callback is None:
        raise Refusal(
            "trainer.callbacks has lost the RunRecord of the recipe, without which it is neither judged nor recorded",
            "Leave it among the callbacks, or use NeMo's own recipe: nemo_NAME.",
        )
    base = promised(callback)
    spec, changed = _judge(parts, base)
    unjudged = _unjudged(recipe, spec, cpu=parts.cpu)
    callback.record, callback.unjudged = record_of(spec), unjudged
    return Judged(spec, changed, unjudged)


def judge_run(
    *, model: Any, data: Any, trainer: Any, log: Any, resume: Any, optim: Any, peft: Any = None
) -> Spec | None:
    """Judge the objects of a recipe before they are connected, and write what they are into the record.

    A recipe without a record, as rehearsals train it, is not judged: None.

    Raises:
        Refusal: as :func:`judge_recipe`; or this environment lacks kernels of the run.
    """
    callback = record_callback(list(trainer.callbacks))
    if callback is None:
        return None
    parts = of_run(model=model, data=data, trainer=trainer, log=log, resume=resume, optim=optim, peft=peft)
    spec = _judge(parts, promised(callback))[0]
    if not parts.cpu:
        require_kernels(spec)
    callback.record = record_of(spec)
    return spec


def _judge(parts: Parts, base: Spec) -> tuple[Spec, list[str]]:
    require_one_value(parts)
    spec = read_back(parts, base)
    if (spec.name, spec.run.dir) != (base.name, base.run.dir):
        raise Refusal(
            f"log.name={spec.name} and log.log_dir={spec.run.dir} move log and checkpoints, and the run's record "
            f"and its TensorBoard files stay in {base.run.dir}/{base.name}",
            "Give them to the factory: name= and dir=.",
        )
    changed = changes(record_of(base), record_of(spec))
    with _named(changed):
        if error := contradiction(spec):
            raise Refusal(*error)
        planner.require_legal(spec)
        if not parts.cpu:
            planner.require_fit(spec, f"slipway check {base.name} shows a layout that fits.")
    return spec, changed


@contextlib.contextmanager
def _named(changed: list[str]) -> Iterator[None]:
    """Add to a refusal what was changed after the factory."""
    try:
        yield
    except Refusal as refusal:
        if not changed:
            raise
        message = f"{refusal.message.rstrip('.')} (changed behind the factory: {', '.join(changed)})"
        raise Refusal(message, refusal.fix, refusal.rule) from None


def changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two records, one ``key old -> new`` each."""
    found = []
    for name, new in after.items():
        old = before.get(name)
        if isinstance(new, Mapping) and isinstance(old, Mapping):
            found += changes(old, new, f"{prefix}{name}.")
        elif new != old:
            found.append(f"{prefix}{name} {_word(old)} -> {_word(new)}")
    return found


def _word(value: Any) -> str:
    return "none" if value in (None, "", []) else str(value).lower() if isinstance(value, bool) else str(value)


def _unjudged(recipe: Any, spec: Spec, *, cpu: bool) -> list[str]:
    """What ``recipe`` sets otherwise than the builder would for ``spec``, one ``path=value`` each."""
    from slipway.recipes.build import build

    ours, given = flatten(build(spec, cpu=cpu)), flatten(recipe)
    found = []
    for path in sorted(set(ours) | set(given)):
        a, b = given.get(path, "None"), ours.get(path, "None")
        if a != b and not path.startswith(_NOT_COMPARED):
            found.append(f"{path}={a} (the recipe has {b})")
    return found
