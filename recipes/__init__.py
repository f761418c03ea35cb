"""NeMo 2.0 recipes: one module a model family, one factory a recipe, one shared builder.

A factory exists for every file in configs/recipe: ``slipway.recipes.llama3.llama3_8b`` is the factory of
``llama3_8b.yaml``. Importing a family imports neither torch nor NeMo; calling a factory does.
"""
