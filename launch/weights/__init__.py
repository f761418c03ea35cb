"""A run's checkpoint as Hugging Face weights."""
