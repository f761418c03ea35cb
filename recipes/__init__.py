"""NeMo 2.0 recipes: one module a model family, one short factory a model, one shared builder.

Importing a family imports neither torch nor NeMo; calling a factory does.
"""
