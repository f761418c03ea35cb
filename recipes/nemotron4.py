"""Nemotron-4 (arXiv:2402.16819, arXiv:2406.11704): squared ReLU, LayerNorm, a vocabulary of 256,000."""

from slipway.recipes.family import Family

FAMILY = Family("nemotron4", nemo_model="NemotronModel")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
