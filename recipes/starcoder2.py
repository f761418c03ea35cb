"""StarCoder2 (arXiv:2402.19173): grouped-query attention with a sliding window, biases."""

from slipway.recipes.family import Family

FAMILY = Family("starcoder2", nemo_model="Starcoder2Model")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
