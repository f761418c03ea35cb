"""Weights from and to Hugging Face: a table a family, read and written tensor by tensor. Needs torch, no NeMo."""
