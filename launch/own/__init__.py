"""Recipes of the user's own: files in the folder that SLIPWAY_CONFIGS names or in ./slipway, and no line of Python."""
