"""A recipe as one YAML file that holds every value: ``slipway export`` writes it and ``slipway run`` trains it."""

from slipway.launch.export.exported import built_recipe, export_recipe, train
from slipway.launch.export.recipe_file import dump, load

__all__ = ["built_recipe", "dump", "export_recipe", "load", "train"]
