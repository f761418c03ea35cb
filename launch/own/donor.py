"""Whose NeMo class trains a model without a recipe: that of our recipe which fixes the same facts, of nearest size."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from slipway import configs
from slipway.configs import Model
from slipway.configs.compose import chosen_groups
from slipway.configs.files import ROOT
from slipway.planner.parameters import model_parameters
from slipway.planner.rules.planned import FIXED_BY_CLASS

OF_TRAINING = (
    "family nemo_config pad_vocab make_vocab_size_divisible_by init_method_std moe_router_load_balancing_type "
    "moe_aux_loss_coeff moe_router_bias_update_rate moe_router_enable_expert_bias mtp_loss_scaling_factor"
).split()
"""Facts that say how a model is trained, which a new model takes from its donor."""
_FIXED = [name for name in FIXED_BY_CLASS if name != "pad_vocab"]  # which decides only the rows that nothing uses


class Donor(NamedTuple):
    """A recipe of ours whose class, optimizer and batch a new one takes."""

    recipe: str
    model: Model
    optim: str


def donor_of(model: Model, families: tuple[str, ...] = ()) -> Donor | None:
    """The donor of a model; None where no class fixes what the model has.

    Args:
        families: families whose recipes come first, whatever their size.
    """
    found = []
    for recipe in sorted(path.stem for path in (ROOT / "recipe").glob("*.yaml")):
        theirs = configs.headline(recipe)[0]
        same = all(getattr(theirs, name) == getattr(model, name) for name in _FIXED)
        if same and (theirs.is_moe, theirs.is_mla) == (model.is_moe, model.is_mla):
            distance = abs(math.log(_size(theirs) / _size(model)))
            of_family = theirs.family not in (families or (model.family,))
            found.append((of_family, distance, recipe))
    if not found:
        return None
    recipe = min(found)[2]
    return Donor(recipe, configs.headline(recipe)[0], chosen_groups(recipe)["optim"])


def _size(model: Model) -> int:
    return model_parameters(model, model.seq_length)[0]


def with_class(model: Model, donor: Donor) -> Model:
    """The model with its donor's class, and what says how it is trained."""
    return replace(model, **{name: getattr(donor.model, name) for name in OF_TRAINING})
