"""Libraries that only some corpora need."""

from __future__ import annotations

import importlib
from typing import Any

from slipway.configs import Refusal


def need(module: str, what: str) -> Any:
    """Import ``module``.

    Args:
        what: what it reads or does, for the message.

    Raises:
        Refusal: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Refusal(
            f"{what} need the package {module}, which is not installed", "Install it: pip install 'nemo-slipway[data]'."
        ) from None
