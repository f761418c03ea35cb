"""Gemma 3 (arXiv:2503.19786): five layers with windows to one without, each kind with its own base of RoPE."""

from slipway.recipes.family import Family

FAMILY = Family("gemma3", nemo_model="Gemma3Model", layers="gemma3", windows_by_frequency=False)
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
