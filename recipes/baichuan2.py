"""Baichuan 2 7B (arXiv:2309.10305): a Llama with a vocabulary of 125,696."""

from slipway.recipes.family import Family

FAMILY = Family("baichuan2", nemo_model="Baichuan2Model")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
