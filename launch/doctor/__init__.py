"""``slipway doctor``: compare this machine and its cluster with what a recipe needs, and name the command that fixes a difference."""
