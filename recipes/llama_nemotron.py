"""Llama-Nemotron (arXiv:2505.00949): NVIDIA's models that begin with Llama 3.1's weights."""

from slipway.recipes.family import Family

FAMILY = Family("llama_nemotron", nemo_model="LlamaNemotronModel")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
