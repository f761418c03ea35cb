"""The commands of ``slipway``: one module each, named after the command. See ``answer.py`` for what a command is."""
