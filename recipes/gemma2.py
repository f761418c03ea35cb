"""Gemma 2 (arXiv:2408.00118): windows in every other layer, soft-capped scores and logits, norms after each block."""

from slipway.recipes.family import Family

FAMILY = Family("gemma2", nemo_model="Gemma2Model", layers="gemma2", windows_by_frequency=False)
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
