"""Phi-3 mini (arXiv:2404.14219): multi-head attention with a sliding window."""

from slipway.recipes.family import Family

FAMILY = Family("phi3", nemo_model="Phi3Model")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
