"""Nemotron-3, the dense models: LayerNorm, squared ReLU, RoPE on half of each head."""

from slipway.recipes.family import Family

FAMILY = Family("nemotron", nemo_model="NemotronModel")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
