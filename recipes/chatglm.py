"""ChatGLM3 6B (arXiv:2406.12793): two query groups, RoPE on interleaved pairs of half of each head."""

from slipway.recipes.family import Family

FAMILY = Family("chatglm", nemo_model="ChatGLMModel")
__getattr__, __dir__ = FAMILY.factory, FAMILY.recipes
