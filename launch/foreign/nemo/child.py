"""The process that configures recipes of NeMo 2.0 and answers with a Spec for each. It trains nothing.

It reads a request from its standard input, as JSON, and writes its answers to the file that SLIPWAY_ANSWER names. NeMo
is imported once; each recipe is configured in a fork, whose time is limited and which has no network.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

_NEW_NETWORK, _NEW_USER = 0x40000000, 0x10000000  # of unshare(2)
_INTERNET = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind")


def main() -> None:
    request, out = json.load(sys.stdin), Path(os.environ["SLIPWAY_ANSWER"])
    import nemo.collections.llm  # noqa: F401

    sys.path.insert(0, os.getcwd())
    found = [_in_fork(target, request["cpu_s"], request["wall_s"]) for target in request["targets"]]
    out.write_text(json.dumps(found))


def _in_fork(target: dict[str, Any], cpu_s: int, wall_s: int) -> dict[str, Any]:
    """The answer for one recipe: of :func:`answer`, or why there is none under ``refused`` and ``fix``."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _limit(cpu_s, wall_s)
                result.write_text(json.dumps(answer(target)))
                code = 0
            except Exception as error:
                fix = "Please report it with the recipe."
                result.write_text(json.dumps(_refused(f"{target['what']} could not be read: {_said(error)}", fix)))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if result.is_file():
            return dict(json.loads(result.read_text()))
    if status in (-signal.SIGXCPU, -signal.SIGALRM, -signal.SIGKILL):
        limit = f"{cpu_s} s of CPU" if status != -signal.SIGALRM else f"{wall_s} s"
        return _refused(f"{target['what']} did not return within {limit}", "Give a function that only configures.")
    return _refused(f"{target['what']} ended its process with {status}", "Give a function that returns a recipe.")


def _refused(message: str, fix: str) -> dict[str, Any]:
    return {"refused": message, "fix": fix}


def _limit(cpu_s: int, wall_s: int) -> None:
    """Limit the time of this process, and take its network away: by a namespace where permitted, and by an audit."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + cpu_s, spent + cpu_s + 5))
    signal.alarm(wall_s)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.unshare(_NEW_NETWORK if os.geteuid() == 0 else _NEW_NETWORK | _NEW_USER)
    sys.addaudithook(_no_network)


def _no_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse what opens a connection. Sockets of this machine (AF_UNIX) have a path for an address."""
    if event not in _INTERNET:
        return
    address = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
    if event == "socket.getaddrinfo" or isinstance(address, tuple):
        host = address[0] if isinstance(address, tuple) else address
        raise PermissionError(f"it calls out to {host}, and a recipe that is read has no network")


def answer(target: dict[str, Any]) -> dict[str, Any]:
    """The Spec of a recipe as a record, with an account of its arguments."""
    from slipway.configs import Refusal
    from slipway.launch.foreign.nemo.recipe import configured, found_in

    try:
        try:
            recipe = configured(target)
        except Refusal:
            raise
        except BaseException as error:  # whatever a user's function raises, SystemExit too
            return _refused(f"{target['what']} raises {_said(error)}", "Correct it.")
        return found_in(recipe, target["what"], target["name"])
    except Refusal as refusal:
        return _refused(refusal.message, refusal.fix)


def _said(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


if __name__ == "__main__":
    main()
