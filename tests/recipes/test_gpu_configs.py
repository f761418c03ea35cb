"""The recipes for GPUs, without one: Megatron-Core's and NeMo's own validation of every configuration that is built.

Transformer Engine is stood in for (tests/megatron.py). What check accepts must construct.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from slipway import configs, planner
from slipway.configs import Refusal, Spec
from slipway.planner.layout import as_overrides

SWITCHES = (
    "",
    "layout.cuda_graphs=true layout.recompute=none layout.recompute_modules=[]",
    "layout.dispatcher=flex",
    "layout.tp_comm_overlap=true",
    "layout.recompute=full",
    "layout.recompute=selective layout.recompute_modules=[mlp]",
    "layout.recompute=selective layout.recompute_modules=[moe_act]",
    "layout.cpu_offload_layers=2",
    "layout.attention_backend=flash",
    "layout.fused_cross_entropy=false",
    "layout.optimizer_cpu_offload=true",
    "layout.distributed_optimizer=false",
    "layout.sp=false",
    "optim.precision_aware=true",
    "optim.precision_aware=false",
    "precision.grad_reduce_in_fp32=false",
)
PRECISIONS = {"h100": ("bf16", "fp32", "fp8_delayed", "fp8_current", "fp8_blockwise"), "gb200": ("bf16", "mxfp8")}


@functools.cache
def _layout(recipe: str) -> list[str]:
    """The recipe's default layout as overrides: every case of the recipe starts from it."""
    return as_overrides(planner.complete(configs.load(recipe)).layout)


def _legal(recipe: str, gpu: str, precision: str, switch: str) -> Spec | None:
    """The recipe's default layout under a switch, if the rules allow it."""
    given = switch.split()
    taken = {key.partition("=")[0] for key in given}
    kept = [key for key in _layout(recipe) if key.partition("=")[0] not in taken]
    if "layout.recompute" in taken:
        kept = [key for key in kept if not key.startswith("layout.recompute")]
    try:
        spec = configs.load(recipe, [f"gpu={gpu}", f"precision={precision}", *kept, *given]).spec
        planner.require_legal(spec)
    except Refusal:
        return None
    return spec


@pytest.mark.nemo
@pytest.mark.slow
def test_what_check_accepts_constructs(in_child: Any) -> None:
    """Every recipe in every precision, and every recipe with every switch."""
    cases = [(r, g, p, "") for r in configs.recipe_names() for g, names in PRECISIONS.items() for p in names]
    cases += [(r, "h100", p, s) for r in configs.recipe_names() for p in ("bf16", "fp8_current") for s in SWITCHES[1:]]
    specs = {case: spec for case in cases if (spec := _legal(*case))}
    for switch in SWITCHES:
        assert any(case[-1] == switch for case in specs), f"no recipe is legal with {switch}: nothing is tried"

    def failures() -> list[str]:
        import fiddle as fdl

        from slipway.recipes.build import build
        from tests.megatron import transformer_engine

        found = []
        with transformer_engine():
            for case, spec in specs.items():
                try:
                    recipe = build(spec)
                    trainer = recipe.trainer
                    for part in (
                        recipe.model.config,
                        recipe.optim,
                        trainer.strategy,
                        trainer.plugins,
                        trainer.callbacks,
                    ):
                        fdl.build(part)
                except Exception as error:
                    found.append(f"{' '.join(case)}: {type(error).__name__}: {str(error).splitlines()[0]}")
        return found

    assert in_child(failures) == []
