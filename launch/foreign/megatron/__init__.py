"""Megatron-LM's command lines: their arguments by its own definitions, and the run that they describe."""
