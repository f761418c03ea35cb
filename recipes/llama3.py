"""Llama 3, 3.1 and 3.2 (arXiv:2407.21783): grouped-query attention, a vocabulary of 128,256; 3.1 and 3.2 scale RoPE."""

from slipway.recipes.family import Family

FAMILY = Family("llama3", nemo_model="LlamaModel")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
