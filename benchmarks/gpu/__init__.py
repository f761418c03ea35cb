"""Llama-3-8B's layers on one GPU: our recipes, their alternatives, and the planner's predictions."""
