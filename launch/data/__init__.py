"""Prepare text: train a tokenizer, and tokenize text into Megatron's .bin and .idx. No NeMo, no torch."""
