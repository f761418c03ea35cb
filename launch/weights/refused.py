"""Classes of transformers that are refused by name, and why (docs/how-to/start-from-hugging-face.md has the table)."""

from __future__ import annotations

_NO_RECIPE = "no recipe trains it"

REFUSED = {
    "Gemma3ForConditionalGeneration": "no recipe trains it: its images are beyond these recipes",
    "GPT2LMHeadModel": "the recipes of GPT-3 have weights of norms around 0, which cannot be converted exactly",
    "Llama4ForCausalLM": "no recipe trains it, and NeMo 2.7.3 never applies its scaling of RoPE",
    "Llama4ForConditionalGeneration": "no recipe trains it: its images are beyond these recipes",
    "Mamba2ForCausalLM": _NO_RECIPE,
    "NemotronHForCausalLM": _NO_RECIPE,
}
