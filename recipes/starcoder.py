"""StarCoder (arXiv:2305.06161): one query group, learned positions, biases, dropout."""

from slipway.recipes.family import Family

FAMILY = Family("starcoder", nemo_model="StarcoderModel")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
