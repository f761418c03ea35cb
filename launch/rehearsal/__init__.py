"""Train a recipe's toy on CPU ranks with the recipe's parallel structure, and compare its loss with one process."""
