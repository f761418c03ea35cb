"""Gemma (arXiv:2403.08295): GeGLU, heads of 256, a vocabulary of 256,000, scaled embeddings."""

from slipway.recipes.family import Family

FAMILY = Family("gemma", nemo_model="GemmaModel")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
