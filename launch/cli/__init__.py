"""The ``slipway`` command line. Each command is a module in ``commands`` that imports what it needs when it runs."""

from slipway.launch.cli.app import main

__all__ = ["main"]
