"""A module for each family of Hugging Face models: the table of its tensors and of its config.json."""
