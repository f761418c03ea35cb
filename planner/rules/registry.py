"""The registry of rules: what a rule is, how a module declares one, and how a fix names legal values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from slipway.configs import Model, Spec

MCORE = "megatron-core 0.15.3 "


class Severity(Enum):
    """What follows from a broken rule."""

    error = "error"  # the run is refused
    advice = "advice"  # the run is legal, and ``check`` prints a warning


class Phase(Enum):
    """Where the stack itself would object."""

    build = "build"  # the config, the process groups or the modules refuse
    step = "step"  # the first training step fails, or trains on wrong gradients
    never = "never"  # the stack builds another model without an error


class Framework(Enum):
    """What trains: rules of Megatron-Core and Transformer Engine hold in every framework, others in one only."""

    nemo = "nemo"  # these recipes, on NeMo 2.7.3
    megatron_lm = "megatron_lm"  # Megatron-LM's own training loop


@dataclass(frozen=True)
class Broken:
    """What a check found: what was given and why it is not legal, and the smallest change that fixes it."""

    message: str  # without the full stop
    fix: str


Check = Callable[[Spec], "Broken | None"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One named condition on a spec. ``check`` returns None where it holds."""

    id: str
    says: str
    why: str
    source: str
    check: Check
    severity: Severity = Severity.error
    phase: Phase = Phase.build
    only_in: Framework | None = None

    def holds_in(self, framework: Framework) -> bool:
        """Whether the framework obeys the rule."""
        return self.only_in is None or self.only_in is framework


@dataclass(frozen=True)
class Violation:
    """A broken rule, as ``check`` reports it."""

    rule: str
    message: str
    fix: str


RULES: list[Rule] = []
"""Every rule, in the order of the modules that ``planner.rules`` imports."""


def rule(
    rule_id: str,
    *,
    says: str,
    why: str,
    source: str,
    severity: Severity = Severity.error,
    phase: Phase = Phase.build,
    only_in: Framework | None = None,
) -> Callable[[Check], Check]:
    """Register the decorated check as a rule.

    Args:
        says: the condition, as a sentence without its full stop.
        why: the reason in the stack's own terms.
        source: the code, document or paper that imposes it.
        severity: whether a broken rule refuses the run or warns.
        phase: where the stack itself would object; of errors only.
        only_in: the framework that imposes it, where it is not Megatron-Core or Transformer Engine.
    """

    def register(check: Check) -> Check:
        made = Rule(
            id=rule_id,
            says=says,
            why=why,
            source=source,
            check=check,
            severity=severity,
            phase=phase,
            only_in=only_in,
        )
        RULES.append(made)
        return check

    return register


def divisors(n: int, limit: int = 1 << 30) -> list[int]:
    """All divisors of ``n`` up to ``limit``, ascending."""
    return [d for d in _all_divisors(n) if d <= limit]


@functools.lru_cache(maxsize=4096)
def _all_divisors(n: int) -> tuple[int, ...]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return tuple(sorted({*small, *(n // d for d in small)}))


def nearest_values(given: int, legal: Iterable[int]) -> str:
    """The legal values just below and above ``given``, as a fix names them."""
    values = sorted(set(legal))
    below = [v for v in values if v < given][-1:]
    above = [v for v in values if v > given][:1]
    return " or ".join(str(v) for v in below + above) or "none"


def divides(
    rule_id: str,
    key: str,
    value: Callable[[Spec], int],
    sizes: Mapping[str, Callable[[Model], int]],
    *,
    says: str,
    why: str,
    source: str,
    legal: Callable[[Model], Iterable[int]] | None = None,
) -> None:
    """Register a rule that says only that one size of the layout divides sizes of the model.

    Args:
        key: the override that sets the size, as a fix names it.
        value: the size.
        sizes: what it must divide, in words with ``{}`` for the number; 0 where the model has no such part.
        legal: the values that a fix may name; the divisors of the first size that is not divided by default.
    """

    def check(spec: Spec) -> Broken | None:
        divisor = value(spec)
        for words, size_of in sizes.items():
            size = size_of(spec.model)
            if size % divisor:
                allowed = legal(spec.model) if legal else divisors(size)
                return Broken(
                    f"{key}={divisor} does not divide {words.format(size)}",
                    f"Use {key}={nearest_values(divisor, allowed)}.",
                )
        return None

    rule(rule_id, says=says, why=why, source=source)(check)
