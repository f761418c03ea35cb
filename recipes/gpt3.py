"""GPT-3 (arXiv:2005.14165): learned positions, LayerNorm, biases, tied embeddings, sequences of 2,048 tokens."""

from slipway.recipes.family import Family

FAMILY = Family("gpt3", nemo_model="GPTModel")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
