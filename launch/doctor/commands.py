"""Ask other programs about this machine."""

from __future__ import annotations

import shutil
import subprocess

TIMEOUT_S = 15.0  # a command that takes longer waits for something that is down


def printed_by(*words: str, timeout_s: float = TIMEOUT_S) -> str | None:
    """What a command prints, stripped; None if it is not installed, fails or takes longer than ``timeout_s``."""
    if shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
