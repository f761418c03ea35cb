"""DeepSeek-V3 (arXiv:2412.19437): multi-latent attention; 8 of 256 experts and a shared one; multi-token prediction."""

from slipway.recipes.family import Family

FAMILY = Family("deepseek", nemo_model="DeepSeekModel", layers="latent_attention")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
