"""Legality as named rules: what NeMo 2.7, Megatron-Core 0.15 and Transformer Engine impose on a run.

A rule of severity ``error`` is one that the stack itself refuses, or trains wrongly; ``advice`` warns of what the stack
accepts and an engineer would avoid. Each module declares the rules of its subject; to add one, write a function with
``@rule`` in the module of that name. tests/planner/test_rules_are_true.py compares the rules with Megatron-Core itself
on thousands of random layouts.
"""

from __future__ import annotations

from slipway.configs import Refusal, Spec

# isort: off
# The order of these imports is the order in which violations are reported.
from slipway.planner.rules import tensor as _tensor  # noqa: F401
from slipway.planner.rules import batch as _batch  # noqa: F401
from slipway.planner.rules import pipeline as _pipeline  # noqa: F401
from slipway.planner.rules import context as _context  # noqa: F401
from slipway.planner.rules import experts as _experts  # noqa: F401
from slipway.planner.rules import recompute as _recompute  # noqa: F401
from slipway.planner.rules import data_parallel as _data_parallel  # noqa: F401
from slipway.planner.rules import precision as _precision  # noqa: F401
from slipway.planner.rules import schedule as _schedule  # noqa: F401
from slipway.planner.rules import finetune as _finetune  # noqa: F401
from slipway.planner.rules import megatron_lm as _megatron_lm  # noqa: F401
from slipway.planner.rules import planned as _planned  # noqa: F401

# isort: on
from slipway.planner.rules.data_parallel import fsdp_resume
from slipway.planner.rules.planned import planned_only
from slipway.planner.rules.recompute import SELECTIVE_MODULES
from slipway.planner.rules.registry import (
    RULES,
    Broken,
    Framework,
    Phase,
    Rule,
    Severity,
    Violation,
    divisors,
    nearest_values,
)

__all__ = [
    "RULES",
    "SELECTIVE_MODULES",
    "Broken",
    "Framework",
    "Phase",
    "Rule",
    "Severity",
    "Violation",
    "divisors",
    "first_violation",
    "is_legal",
    "nearest_values",
    "only_planned",
    "require_legal",
    "require_trained",
    "violations",
]


_REFUSING = [rule for rule in RULES if rule.severity is Severity.error and rule.holds_in(Framework.nemo)]


def violations(
    spec: Spec, severity: Severity = Severity.error, framework: Framework = Framework.nemo
) -> list[Violation]:
    """Every rule of this severity and framework that ``spec`` breaks, in the order of the rules."""
    rules = [rule for rule in RULES if rule.severity is severity and rule.holds_in(framework)]
    found = [(rule.id, rule.check(spec)) for rule in rules]
    return [Violation(rule_id, broken.message + ".", broken.fix) for rule_id, broken in found if broken]


def first_violation(spec: Spec) -> Violation | None:
    """The first rule that refuses ``spec``; None where it is legal."""
    for rule in _REFUSING:
        if broken := rule.check(spec):
            return Violation(rule.id, broken.message + ".", broken.fix)
    return None


def is_legal(spec: Spec) -> bool:
    """Whether no rule that refuses is broken."""
    return first_violation(spec) is None


def require_legal(spec: Spec) -> None:
    """Raise a Refusal for the first violation, or for what can be planned for only.

    Raises:
        Refusal: a rule is broken, or no recipe trains what ``spec`` asks for.
    """
    if first := first_violation(spec):
        raise Refusal(first.message, first.fix, first.rule)
    require_trained(spec)


def only_planned(spec: Spec) -> list[Violation]:
    """The advice that ``spec`` can be planned for but not trained, where it is so."""
    broken = planned_only(spec)
    return [Violation("planned-only", broken.message + ".", broken.fix)] if broken else []


def require_trained(spec: Spec) -> None:
    """Require that recipes train what ``spec`` asks for; the builder asks this of layouts that no rule has judged too.

    Raises:
        Refusal: the first value that no recipe trains.
    """
    for rule_id, check in (("fsdp-resume", fsdp_resume), ("planned-only", planned_only)):
        if broken := check(spec):
            raise Refusal(broken.message + ".", broken.fix, rule_id)
