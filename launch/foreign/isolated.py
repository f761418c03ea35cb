"""Python that a user names, run in a child process: no accelerator, no network, a limit on its time. No NeMo here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from slipway.configs import Refusal

WALL_S = 300.0
"""Seconds for the import of the framework (10 s of CPU; a minute where nothing is compiled) and everything after it."""
_LONGEST_REASON = 300  # characters of what a child printed

HIDDEN = {
    "CUDA_VISIBLE_DEVICES": "",
    "NVIDIA_VISIBLE_DEVICES": "void",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
}
"""Variables of the child: no accelerator, and libraries that do not try the network."""


def answers(module: str, request: dict[str, Any], *, python: str = sys.executable, wall_s: float = WALL_S) -> list[Any]:
    """What the main function of ``module`` answers to a request, both as JSON, in a process of its own.

    Raises:
        Refusal: it ended without an answer.
    """
    with tempfile.TemporaryDirectory(prefix="slipway-read-") as folder:
        out = Path(folder) / "answer.json"
        environment = os.environ | HIDDEN | {"NEMORUN_HOME": folder, "SLIPWAY_ANSWER": str(out)}
        child = subprocess.Popen(
            [python, "-m", module],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        try:
            said, _ = child.communicate(json.dumps(request), timeout=wall_s)
        except subprocess.TimeoutExpired:
            raise Refusal(
                f"reading {request['what']} took more than {wall_s:.0f} s, and was ended",
                "Give a function that only configures.",
            ) from None
        finally:
            _end(child)
        if not out.is_file():
            raise Refusal(f"{request['what']} could not be read: {_reason(said, child.returncode)}", "Correct it.")
        return list(json.loads(out.read_text()))


def _end(child: subprocess.Popen[str]) -> None:
    """End the child with everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _reason(said: str, code: int) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    last = lines[-1].strip() if lines else f"its process ended with {code}"
    return last[:_LONGEST_REASON]
