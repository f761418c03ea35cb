"""The precision of what trains, from NeMo's plugin, which overrides every other part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slipway import configs
from slipway.configs import Precision, Refusal
from slipway.configs.files import choices
from slipway.configs.schema import Gemm
from slipway.configs.schema.precision import Fp8Format, Fp8Recipe
from slipway.recipes.readback.parts import Parts, choice, value


def read_precision(parts: Parts, base: Precision) -> Precision:
    """The precision of ``parts``, under the name of the file in configs/precision with its format and scaling.

    Raises:
        Refusal: a format that no file describes.
    """
    plugin = parts.plugin
    word = str(value(plugin, "precision"))
    if not word.startswith(("32", "bf16")) or value(plugin, "fp4"):
        raise Refusal(
            f"trainer.plugins has precision={word}{' and fp4' if value(plugin, 'fp4') else ''}, which is none of "
            "Slipway's precisions",
            "Use precision=bf16, fp8_current or another that slipway show lists.",
        )
    scaled = value(plugin, "fp8")
    gemm = Gemm.fp8 if scaled else Gemm.fp32 if word.startswith("32") else Gemm.bf16
    recipe = choice(Fp8Recipe, value(plugin, "fp8_recipe")) if scaled else Fp8Recipe.none
    named = base if (base.gemm, base.fp8_recipe) == (gemm, recipe) else _named(gemm, recipe, base)
    changed: dict[str, Any] = {"gemm": gemm, "fp8_recipe": recipe}
    changed["grad_reduce_in_fp32"] = bool(value(plugin, "grad_reduce_in_fp32"))
    if scaled:
        changed["fp8_format"] = choice(Fp8Format, scaled)
        changed["fp8_param_gather"] = bool(value(plugin, "fp8_param_gather") or value(plugin, "fp8_params"))
        changed["first_last_layers_bf16"] = bool(value(plugin, "first_last_layers_bf16"))
        if changed["first_last_layers_bf16"]:
            for name in ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"):
                changed[name] = value(plugin, name)
    return replace(named, **changed)


def _named(gemm: Gemm, recipe: Fp8Recipe, base: Precision) -> Precision:
    for name in choices("precision"):
        found = configs.precision(name)
        if (found.gemm, found.fp8_recipe) == (gemm, recipe):
            return found
    return base
