"""Run ``slipway`` in a fork of this process, which has NeMo imported: a launch then takes two seconds, not thirty."""

from __future__ import annotations

import ctypes
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLONE_NEWNET = 0x40000000  # of setns(2): a network namespace


def forked(
    work: Callable[[], Any], *, environment: dict[str, str], cwd: Path, namespace: str, timeout_s: float
) -> tuple[Any, str, str]:
    """The result, stdout and stderr of ``work`` in a child with this environment, folder and network namespace."""
    from slipway.launch.rehearsal import ranks
    from slipway.launch.rehearsal.rehearse import import_nemo

    import_nemo()
    with tempfile.TemporaryDirectory() as logs:
        out, err = Path(logs) / "stdout", Path(logs) / "stderr"

        def child(_: int) -> Any:
            from nemo_run.config import set_nemorun_home

            os.environ.clear()
            os.environ.update(environment)
            set_nemorun_home(environment["NEMORUN_HOME"])  # NeMo-Run reads the variable when it is imported
            os.chdir(cwd)
            with open(f"/run/netns/{namespace}") as net:
                if ctypes.CDLL(None, use_errno=True).setns(net.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            # pytest has replaced the streams by its own, which write elsewhere and refuse to be read
            sys.stdin, sys.stdout, sys.stderr = (
                io.TextIOWrapper(io.FileIO(number, mode, closefd=False), write_through=True)
                for number, mode in ((0, "r"), (1, "w"), (2, "w"))
            )
            return work()

        result = ranks.run(1, child, timeout_s=timeout_s).results[0]
        return result, out.read_text(), err.read_text()


def slipway(
    *words: str, environment: dict[str, str], cwd: Path, namespace: str, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """``slipway WORDS``, as :func:`subprocess.run` would return it."""

    def work() -> int:
        from slipway.launch.cli import main

        sys.argv = ["slipway", *words]
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    code, out, err = forked(work, environment=environment, cwd=cwd, namespace=namespace, timeout_s=timeout_s)
    return subprocess.CompletedProcess(["slipway", *words], code, out, err)
