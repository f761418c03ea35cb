"""Mixtral (arXiv:2401.04088): 2 of 8 experts, without dropped tokens."""

from slipway.recipes.family import Family

FAMILY = Family("mixtral", nemo_model="MixtralModel")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
