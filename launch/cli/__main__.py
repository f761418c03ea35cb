"""``python -m slipway.launch.cli``: the ``slipway`` command, run by the interpreter of your choice."""

from slipway.launch.cli import main

if __name__ == "__main__":
    main()
