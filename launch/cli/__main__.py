"""``python -m slipway.launch.cli``: the ``slipway`` command by the interpreter of one's choice."""

from slipway.launch.cli import main

if __name__ == "__main__":
    main()
