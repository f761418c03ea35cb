"""DeepSeek-V2 and V2-Lite (arXiv:2405.04434): multi-latent attention; 6 of 160 or 64 experts and two shared ones."""

from slipway.recipes.family import Family

FAMILY = Family("deepseek_v2", nemo_model="DeepSeekModel", layers="deepseek_v2")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
