"""Run a command, or a function, in a fork of this process, which has NeMo imported.

A process of its own imports NeMo for some 16 s of CPU; a fork starts in milliseconds. What a fork cannot prove is that
the console scripts are installed: each of ``nemo``, ``slipway launch`` and ``python -m`` also has a test that starts a
process. Use the functions here in place of :func:`subprocess.run`.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLONE_NEWNET = 0x40000000  # of setns(2): a network namespace
POLL_S = 0.02


@dataclass(frozen=True)
class Forked:
    """How a fork ended: its exit code, what the function returned, and what was printed."""

    code: int
    result: Any
    stdout: str
    stderr: str


def forked(
    work: Callable[[], Any],
    *,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
    namespace: str = "",
    timeout_s: float = 300.0,
) -> Forked:
    """Call ``work`` in a child, as the main function of a process would be called.

    Args:
        work: what it returns must be something that JSON can hold. An exception that it raises is printed as a
            traceback and gives the exit code 1; SystemExit gives its own code.
        environment: all of the child's variables; this process's by default.
        cwd: the child's working directory.
        namespace: a network namespace of ``ip netns`` that the child enters.
        timeout_s: seconds after which the child is killed.

    Raises:
        subprocess.TimeoutExpired: the child was killed.
    """
    from slipway.launch.rehearsal.rehearse import import_nemo

    import_nemo()
    variables = dict(os.environ if environment is None else environment)
    with tempfile.TemporaryDirectory(prefix="slipway-forked-") as folder:
        out, err, result = (Path(folder) / name for name in ("stdout", "stderr", "result.json"))
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os._exit(_child(work, variables, cwd, namespace, out, err, result))
        try:
            code = _wait(pid, timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, 9)  # what the child started, such as checkpoint writers, ends with it
        if code is None:
            raise subprocess.TimeoutExpired("a fork", timeout_s, out.read_text(), err.read_text())
        returned = json.loads(result.read_text()) if result.is_file() else None
        return Forked(code, returned, out.read_text(), err.read_text())


def _wait(pid: int, timeout_s: float) -> int | None:
    """The exit code of a child, or None if it had to be killed."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_S)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return None


def _child(
    work: Callable[[], Any],
    environment: dict[str, str],
    cwd: Path | None,
    namespace: str,
    out: Path,
    err: Path,
    result: Path,
) -> int:
    """The child's side of the fork. Returns the exit code."""
    os.setpgid(0, 0)
    try:
        _redirect(out, err)
        os.environ.clear()
        os.environ.update(environment)
        if "NEMORUN_HOME" in environment:
            from nemo_run.config import set_nemorun_home

            set_nemorun_home(environment["NEMORUN_HOME"])  # NeMo-Run reads the variable when it is imported
        if cwd is not None:
            os.chdir(cwd)
        if namespace:
            _enter(namespace)
        result.write_text(json.dumps(work()))
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _enter(namespace: str) -> None:
    with open(f"/run/netns/{namespace}") as net:
        if ctypes.CDLL(None, use_errno=True).setns(net.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")


def _redirect(out: Path, err: Path) -> None:
    """Give the child the files ``out`` and ``err`` in place of pytest's streams, also where loggers keep those."""
    of_pytest = {id(sys.stdout): "stdout", id(sys.stderr): "stderr"}
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, mode, closefd=False), write_through=True)
        for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    for handler in _stream_handlers():
        name = of_pytest.get(id(handler.stream))
        if name and handler is not logging.lastResort:  # which looks up sys.stderr each time
            handler.setStream(getattr(sys, name))


def _stream_handlers() -> Iterator[logging.StreamHandler]:
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield from (h for h in logger.handlers if type(h) is logging.StreamHandler)


def slipway(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """``slipway WORDS``, as :func:`subprocess.run` would return it. Options: those of :func:`forked`."""

    def work() -> None:
        from slipway.launch.cli import main

        main()

    return _command("slipway", words, work, options)


def nemo(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """``nemo WORDS``, as :func:`subprocess.run` would return it. Options: those of :func:`forked`."""

    def work() -> None:
        from nemo_run.__main__ import app

        app()

    return _command("nemo", words, work, options)


def _command(
    name: str, words: tuple[str, ...], work: Callable[[], None], options: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    def main() -> None:
        sys.argv = [name, *words]
        work()

    done = forked(main, **options)
    return subprocess.CompletedProcess([name, *words], done.code, done.stdout, done.stderr)
