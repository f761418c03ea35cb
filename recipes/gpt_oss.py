"""GPT-OSS (arXiv:2508.10925): windows in every other layer, attention sinks, experts with biases and clamped gates."""

from slipway.recipes.family import Family

FAMILY = Family("gpt_oss", nemo_model="GPTOSSModel")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
