"""What reaches ``llm.pretrain`` read back into a Spec and judged: the inverse of ``recipes/build``.

NeMo-Run applies overrides to a recipe after its factory has built it, and a recipe may be changed in Python or in its
exported file. Each module here reads one argument of the recipe, as configurations before it starts or as objects when
it does. What the recipe does not hold (its GPU, sources, names of files) comes from the record that it carries.
"""

from __future__ import annotations

from slipway.recipes.readback.judge import Judged, judge_recipe, judge_run, promised, record_callback
from slipway.recipes.readback.parts import Parts, of_recipe, of_run
from slipway.recipes.readback.spec import read_back

__all__ = [
    "Judged",
    "Parts",
    "judge_recipe",
    "judge_run",
    "of_recipe",
    "of_run",
    "promised",
    "read_back",
    "record_callback",
]
