"""Refuse what the planner can price but the recipes cannot train.

If it were left out without a word, another model or another layout would be trained.
"""

from __future__ import annotations

from slipway.configs import Refusal, Spec
from slipway.planner.rules import require_trained
from slipway.planner.rules.data_parallel import fsdp_resume


def refuse_what_is_only_planned(spec: Spec) -> None:
    """Check that every value of ``spec`` reaches the recipe.

    Raises:
        Refusal: the first value that does not.
    """
    if broken := fsdp_resume(spec):
        raise Refusal(broken.message, broken.fix)
    require_trained(spec)
