"""``slipway doctor``: compare this machine and its cluster with what a recipe needs, and name the fixes."""
