"""One start at a time in a run's folder, on a shared file system too. No torch, no NeMo.

The first rank holds a POSIX lock on ``slipway/lock``, which the kernel gives back however the rank ends, and writes
into it who it is. Where a file system has no locks, and where a node has died with its lock, the time of the file's
last change decides: the rank's warden renews it every ten seconds.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from slipway.configs import Refusal
from slipway.recipes.runtime.run_files import LOCK
from slipway.recipes.runtime.warden import BEAT_S, started

WATCH_S = 3 * BEAT_S  # a holder on another machine that gives no sign of life for so long is dead
LEASE_S = 120.0  # how long a file server may keep the lock of a dead machine; NFSv4 servers take 90 s by default
_BUSY = (errno.EACCES, errno.EAGAIN)
_held: dict[str, int] = {}  # path -> file descriptor: closing any descriptor of the file would give the lock back


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that trains in a folder. ``machine`` tells boots and containers of one host apart."""

    host: str
    machine: str
    pid: int
    started: str
    job: str
    since: str

    @classmethod
    def this(cls) -> Holder:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(
            host=socket.gethostname(),
            machine=f"{boot} {os.readlink('/proc/self/ns/pid')}",
            pid=os.getpid(),
            started=started(os.getpid()),
            job=os.environ.get("SLURM_JOB_ID", ""),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
        )

    def describe(self) -> str:
        job = f" (SLURM job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


def acquire(run_dir: Path) -> Path:
    """Hold the folder until this process ends; returns the file whose time must be renewed.

    Raises:
        Refusal: another process trains there.
    """
    path = run_dir / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    if str(path) in _held:
        return path
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
    end = time.monotonic() + LEASE_S
    try:
        while not _lock(file):
            holder = _read(file)
            if holder is None or _alive(holder, path) or time.monotonic() > end:
                raise _refused(run_dir, holder)
        holder = _read(file)
        if holder and _alive(holder, path):  # a file system whose locks do not reach other machines, or has none
            raise _refused(run_dir, holder)
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(asdict(Holder.this())).encode(), 0)
        os.fsync(file)
    except BaseException:
        os.close(file)
        raise
    _held[str(path)] = file
    return path


def release(path: Path) -> None:
    """Give a folder back."""
    file = _held.pop(str(path), None)
    if file is not None:
        os.ftruncate(file, 0)
        os.close(file)


def holder_of(run_dir: Path) -> Holder | None:
    """The living process that trains in a folder, or None."""
    path = run_dir / LOCK
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        holder = _read(file)
    finally:
        os.close(file)
    return holder if holder and _alive(holder, path) else None


def _lock(file: int) -> bool:
    """Whether this process has the lock, or the file system has none."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _BUSY
    return True


def _read(file: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(file, 1 << 16, 0)))
    except (ValueError, TypeError):
        return None


def _alive(holder: Holder, path: Path, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Whether the process still runs. On this machine the kernel says so; of another one, the file is watched."""
    here = Holder.this()
    if holder.machine == here.machine:
        return holder.pid != here.pid and started(holder.pid) == holder.started
    if holder.job and holder.job == here.job:
        return False  # SLURM ends a job everywhere before it starts it again
    if holder.host == here.host and holder.machine.split()[0] != here.machine.split()[0]:
        return False  # this machine was started again since
    before, end = path.stat().st_mtime_ns, time.monotonic() + WATCH_S
    while time.monotonic() < end:
        sleep(1.0)
        if path.stat().st_mtime_ns != before:
            return True
    return False


def _refused(run_dir: Path, holder: Holder | None) -> Refusal:
    who = holder.describe() if holder else "another process"
    return Refusal(f"{run_dir} is in use: {who} trains in it", "End that run first, or give another name= or run.dir=.")
