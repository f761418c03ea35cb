"""The modules of a GPU's rank, built where there is no GPU: Megatron-Core's, with the arguments that it gives to
Transformer Engine, after NeMo's merges.

The stand-ins take the arguments of Transformer Engine 2.9 and no others, and have the asserts of its constructors.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from slipway import configs, planner
from slipway.configs import Spec, load
from slipway.planner.layout import chosen_overrides
from tests.kinds import one_of_each_kind
from tests.recipes.test_gpu_path import SWITCHES

PRECISIONS = ("bf16", "fp8_delayed", "fp8_current", "fp8_blockwise", "mxfp8")


def one_of_each_family() -> list[str]:
    pretrained = [name for name in configs.recipe_names() if not name.endswith("k")]  # the others extend a context
    return list({configs.headline(name)[0].family: name for name in pretrained}.values())


def built(spec: Spec) -> str:
    """What building the last stage of ``spec`` raises; empty if nothing."""
    from tests.megatron import build_rank, stage_rank

    lay = spec.layout
    fewest = lay.pp * math.lcm(lay.tp * lay.cp, lay.expert_tp * lay.ep)  # the data-parallel ranks have equal modules
    fewest *= spec.levers.optimizer_instances
    small = replace(spec, gpus=fewest)
    try:
        build_rank(small, stage_rank(small, lay.pp - 1))
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


@pytest.mark.nemo
def test_each_kind_of_recipe_is_built_and_one_of_each_family_in_every_precision(in_child: Any) -> None:
    def wrong() -> dict[str, Any]:
        failed, legal, of_families = {}, 0, set(one_of_each_family())
        for name in one_of_each_kind():
            for precision in PRECISIONS if name in of_families else PRECISIONS[:1]:
                gpu = "b200" if precision == "mxfp8" else "h100"
                try:
                    spec = planner.complete(load(name, [f"gpu={gpu}", f"precision={precision}"]))
                except configs.Refusal:
                    continue
                if planner.is_legal(spec) and not planner.only_planned(spec):
                    legal += 1
                    if error := built(spec):
                        failed[f"{name} {precision}"] = error
        return {"failed": failed, "many": legal > 2 * len(one_of_each_kind())}

    assert in_child(wrong) == {"failed": {}, "many": True}


@pytest.mark.nemo
def test_every_switch_is_built_in_every_family(in_child: Any) -> None:
    """On top of the layout that the recipe has by itself, where that is legal."""

    def wrong() -> dict[str, Any]:
        failed, legal = {}, dict.fromkeys(SWITCHES, 0)
        for name in one_of_each_family():
            default = chosen_overrides(planner.complete(load(name, ["gpu=h100"])).layout)
            for switch in SWITCHES:
                switched = {word.split("=")[0] for word in switch.split()}
                switched |= {"layout.recompute_modules"} if "layout.recompute" in switched else set()
                kept = [word for word in default if word.split("=")[0] not in switched]
                spec = load(name, ["gpu=h100", *kept, *switch.split()]).spec
                if planner.is_legal(spec):
                    legal[switch] += 1
                    if error := built(spec):
                        failed[f"{name} {switch}"] = error
        return {"failed": failed, "never legal": [switch for switch, count in legal.items() if not count]}

    assert in_child(wrong) == {"failed": {}, "never legal": []}
