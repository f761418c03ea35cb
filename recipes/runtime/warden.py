"""A small process beside each rank, which ends what a rank leaves behind and says how it died.

The rank starts it with ``python -I -S`` (see :mod:`.lifeline`), so it imports the standard library only. It has a
session of its own, so that no signal to the ranks reaches it. It sees the rank's death through a pidfd. Lines on its
standard input are what the rank says of itself:

    begin           all ranks of the run have met, so that its folder is this run's
    step N          N optimizer steps are done; from then on, the rank hangs if it says nothing for ``hang_s``
    busy            it validates or saves
    ending          an exception ends the rank; after ENDING_S it is killed, whatever it still waits for
    done            training has succeeded
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __name__ != "__main__":
    from slipway.recipes.runtime import hang
else:  # python -I does not look beside the script
    sys.path.insert(0, str(Path(__file__).parent))
    import hang

POLL_S = 1.0
ENDING_S = 15.0  # from a rank's exception to its kill: time for messages, traces and a checkpoint writer's end
STOP_S = 15.0  # from the end of the command that started the ranks to the kill of their launcher
SWEEP_S = 5.0  # how long processes that do not die are killed again
SLOWER = 10.0  # times the median of the RECENT steps: a rank whose steps are long does not hang
RECENT = 20
BEAT_S = 10.0  # between two signs of life in the run's lock
# What a rank says when it only lost its connection to one that died.
ECHO = re.compile(
    r"[Cc]onnection (?:reset|closed|refused)|[Bb]roken pipe|Socket (?:closed|Timeout)|remote process exited|"
    r"NCCL (?:communicator|error)|store->get|recvValue failed"
)


def stat_of(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def started(pid: int) -> str:
    """When a process started, in clock ticks since the boot; empty where it is gone. It tells a reused pid apart."""
    fields = stat_of(pid)
    return fields[19] if fields and fields[0] not in "ZX" else ""


def children(pid: int) -> list[int]:
    """The processes that any thread of ``pid`` started."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


class Warden:
    """What the warden of one rank knows.

    Args:
        order: ``rank``, ``pid``, ``parent`` (0: none that the rank depends on), ``owner`` (``PID:START`` of the command
            that started the ranks; may be empty), ``failure`` (file), ``hang`` (folder), ``lock`` (file; may be empty),
            ``files`` (path -> least bytes), ``world`` (number of ranks), ``hang_s`` (0: never), ``stack`` (an open
            file into which the rank writes its stacks).
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self.rank, self.pid, self.parent = order["rank"], order["pid"], order["parent"]
        self.owner, _, self.owner_started = order["owner"].partition(":")
        self.failure = Path(order["failure"])
        self.lock, self.hang = order["lock"], order["hang"]
        self.files: dict[str, int] = order["files"]
        self.family: dict[int, str] = {}
        self.step, self.said, self.begun = 0, "", False
        self.ends_at = self.stops_at = float("inf")
        self.beats_at = 0.0
        self.world, self.hang_s, self.stack = order["world"], order["hang_s"], order["stack"]
        self.heard_at, self.gaps = float("inf"), [0.0]

    def watch(self) -> None:
        """Return when the rank is dead and nothing of it runs."""
        try:
            rank = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        poll = select.poll()
        poll.register(rank, select.POLLIN)
        poll.register(0, select.POLLIN)
        code: int | None = None
        while code is None:
            for fd, event in poll.poll(POLL_S * 1000):
                if fd == rank:
                    code = self._exit_code()
                elif not self._hear(os.read(0, 65536)) or event & select.POLLNVAL:
                    poll.unregister(0)
            if code is None:
                self._look()
        self._sweep()
        if not self.said and code:
            self._report(code)

    def _hear(self, data: bytes) -> bool:
        for line in data.decode(errors="replace").splitlines():
            word, _, value = line.partition(" ")
            if word in ("step", "busy"):
                now = time.monotonic()
                self.gaps = [*self.gaps[-RECENT:], max(0.0, now - self.heard_at)]
                self.heard_at = now
            if word == "step" and value.isdigit():
                self.step = int(value)
                self.said, self.ends_at = "", float("inf")
            elif word == "begin":
                self.begun = True
            elif word in ("done", "ending"):
                self.said, self.heard_at = word, float("inf")
                self.ends_at = time.monotonic() + ENDING_S if word == "ending" else float("inf")
        return bool(data)

    def _exit_code(self) -> int:
        """Exit code of the rank as :func:`os.waitstatus_to_exitcode` has it; -9 where its parent has asked already."""
        fields = stat_of(self.pid)
        with contextlib.suppress(ValueError, IndexError):
            if fields and fields[0] == "Z":
                return os.waitstatus_to_exitcode(int(fields[49]))
        return -signal.SIGKILL

    def _look(self) -> None:
        now = time.monotonic()
        self._remember(self.pid)
        usual = sorted(self.gaps)[len(self.gaps) // 2]
        if self.hang_s and now - self.heard_at >= max(self.hang_s, SLOWER * usual):
            self._end_hang(now - self.heard_at)
        if now >= self.ends_at:
            self._say(f"ended {ENDING_S:.0f} s after its failure, because it was still running")
            self._kill(self.pid)
        if self.owner and self.stops_at == float("inf") and started(int(self.owner)) != self.owner_started:
            self._say("the command that started this run is gone, and the run ends with it")
            self.stops_at = now + STOP_S
            self._kill(self.parent or self.pid, signal.SIGTERM)
        if now >= self.stops_at:
            self._kill(self.parent or self.pid)
            self._kill(self.pid)
        if self.lock and now >= self.beats_at:
            self.beats_at = now + BEAT_S
            with contextlib.suppress(OSError):
                os.utime(self.lock)

    def _end_hang(self, silent_s: float) -> None:
        """Name the rank that holds the others up, write the stack of this one into its log, and end it."""
        self.heard_at, self.said = float("inf"), "hang"
        state = (stat_of(self.pid) or ["?"])[0]
        stack = hang.stack_of(self.pid, self.stack, stopped=state in "Tt")
        folder = Path(self.hang)
        report = hang.Report(self.rank, socket.gethostname(), self.pid, self.step, state, stack)
        with contextlib.suppress(OSError):
            hang.publish(folder, report)
        reports = [report]
        with contextlib.suppress(OSError, ValueError, TypeError):
            reports = hang.gather(folder, self.world)
        culprit, message = hang.verdict(reports, self.world, silent_s)
        self._say(f"{message}; the stacks of rank {self.rank}:\n{stack}")
        if self.rank == min(each.rank for each in reports):
            self._write_failure({"step": self.step, "rank": culprit, "error": "Hang", "message": message})
        time.sleep(hang.TELL_S)
        self._kill(self.pid)

    def _remember(self, pid: int) -> None:
        for child in children(pid):
            if child != os.getpid() and child not in self.family:
                self.family[child] = started(child)
            if child != os.getpid():
                self._remember(child)

    def _sweep(self) -> None:
        """Kill what the rank started, and what that started, until none is alive."""
        end = time.monotonic() + SWEEP_S
        while time.monotonic() < end:
            for pid in list(self.family):
                self._remember(pid)
            alive = [pid for pid, since in self.family.items() if since and started(pid) == since]
            alive += [pid for pid in self._session() if pid not in alive]
            if not alive:
                return
            for pid in alive:
                self._kill(pid)
            time.sleep(0.05)

    def _session(self) -> list[int]:
        """The processes of the rank's session, if the rank was started as its leader, as torchrun does."""
        return [
            int(name)
            for name in os.listdir("/proc")
            if name.isdigit()
            and (fields := stat_of(int(name)))
            and fields[3] == str(self.pid)
            and fields[0] not in "ZX"
        ]

    def _kill(self, pid: int, how: int = signal.SIGKILL) -> None:
        with contextlib.suppress(OSError):
            os.kill(pid, how)

    def _report(self, code: int) -> None:
        """Say how the rank died, unless another is known to have died first."""
        host, died = socket.gethostname(), _death(code)
        message = self._reason() or f"rank {self.rank} on {host} {died} after step {self.step}"
        text = message if message.startswith("rank ") else f"{message} (rank {self.rank} on {host} {died})"
        if not self.begun:
            self._say(text)
            return
        before: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            before = json.loads(self.failure.read_text())
        if before and not ECHO.search(str(before.get("message"))):
            return
        self._say(text)
        held = {"step": self.step, "rank": self.rank, "host": host, "error": died, "message": message}
        self._write_failure(held)

    def _write_failure(self, held: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            temporary = self.failure.with_name(f"{self.failure.name}.{self.rank}.tmp")
            temporary.write_text(json.dumps(held))
            temporary.replace(self.failure)

    def _reason(self) -> str:
        """What explains the death of a rank that said nothing."""
        if self.parent and not started(self.parent):
            return f"what started the ranks (process {self.parent} on {socket.gethostname()}, torchrun or rank 0) died"
        for path, least in self.files.items():
            try:
                size = os.stat(path).st_size
            except OSError as error:
                return f"{path}, which the run reads, is gone: {error.strerror}"
            if size < least:
                return f"{path} was cut short while the run read it: {size:,} of {least:,} bytes are left"
        return ""

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"slipway: {text if text.startswith('rank ') else f'rank {self.rank}: {text}'}\n".encode())


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def main() -> None:
    """Watch the rank that the only argument describes."""
    for each in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(each, signal.SIG_IGN)
    Warden(json.loads(sys.argv[1])).watch()


if __name__ == "__main__":
    main()
