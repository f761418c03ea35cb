"""What every command that imports NeMo does first: require it, and keep what it prints on import off the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


def require_nemo(command: str) -> None:
    """Check that NeMo and Megatron-Core are installed, without importing them.

    Raises:
        Refusal: one of them is not.
    """
    from importlib.util import find_spec

    from slipway.configs import Refusal

    if find_spec("nemo") is None or find_spec("megatron") is None:
        raise Refusal(
            f"slipway {command} needs NeMo and Megatron-Core, which are not installed",
            "Install them with: make setup, or pip install 'nemo-slipway[nemo]' with requirements/lock.txt.",
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what is printed inside, by libraries too, off the terminal, unless it fails with anything but a Refusal."""
    import tempfile

    from slipway.configs import Refusal
    from slipway.launch.terminal import captured

    with tempfile.TemporaryFile("w+") as log:
        try:
            with captured(log):
                yield
        except Exception as error:
            if not isinstance(error, Refusal):
                log.seek(0)
                sys.stderr.write(log.read())
            raise
