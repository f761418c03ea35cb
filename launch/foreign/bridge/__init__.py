"""Configurations of Megatron-Bridge: its run_config.yaml, and a recipe's source, of which nothing is executed."""
