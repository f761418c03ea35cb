"""Prepare text for training: train a tokenizer, and tokenize text into Megatron's .bin and .idx. No NeMo and no torch."""
