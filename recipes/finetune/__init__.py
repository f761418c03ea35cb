"""Finetuning: instructions as packed sequences with a loss on answers, and adapters that no layout changes."""
