"""Llama 2 (arXiv:2307.09288): sequences of 4,096 tokens; grouped-query attention at 70B only."""

from slipway.recipes.family import Family

FAMILY = Family("llama2", nemo_model="LlamaModel")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
