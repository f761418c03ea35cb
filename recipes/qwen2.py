"""Qwen2 and Qwen2.5 (arXiv:2407.10671, 2412.15115): biases of queries, keys and values."""

from slipway.recipes.family import Family

FAMILY = Family("qwen2", nemo_model="Qwen2Model")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
