"""Qwen3 (arXiv:2505.09388): normalized queries and keys; dense models, and models of 128 experts."""

from slipway.recipes.family import Family

FAMILY = Family("qwen3", nemo_model="Qwen3Model")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
