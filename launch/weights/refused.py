"""Classes of transformers that are refused by name, and why (docs/how-to/start-from-hugging-face.md has the table)."""

from __future__ import annotations

_NO_RECIPE = "no recipe trains it"

REFUSED = {
    "DeepseekV2ForCausalLM": "no recipe trains it, and NeMo 2.7.3 ranks its groups of experts in another way",
    "Gemma2ForCausalLM": "no recipe trains it, and NeMo 2.7.3 has its sliding windows in the wrong layers",
    "Gemma3ForCausalLM": "no recipe trains it, and NeMo 2.7.3 fails in its first layer with megatron-core 0.15",
    "Gemma3ForConditionalGeneration": "no recipe trains it: its images are beyond these recipes",
    "GemmaForCausalLM": _NO_RECIPE,
    "GPT2LMHeadModel": "the recipes of GPT-3 have weights of norms around 0, which cannot be converted exactly",
    "GPTBigCodeForCausalLM": _NO_RECIPE,
    "GptOssForCausalLM": "no recipe trains it, and NeMo 2.7.3 has another activation and another scaling of RoPE",
    "Llama4ForCausalLM": "no recipe trains it, and NeMo 2.7.3 never applies its scaling of RoPE",
    "Llama4ForConditionalGeneration": "no recipe trains it: its images are beyond these recipes",
    "Mamba2ForCausalLM": _NO_RECIPE,
    "NemotronHForCausalLM": _NO_RECIPE,
    "Phi3ForCausalLM": _NO_RECIPE,
    "Starcoder2ForCausalLM": _NO_RECIPE,
}
