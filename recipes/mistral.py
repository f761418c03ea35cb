"""Mistral (arXiv:2310.06825): grouped-query attention; the 7B has a sliding window."""

from slipway.recipes.family import Family

FAMILY = Family("mistral", nemo_model="MistralModel")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
