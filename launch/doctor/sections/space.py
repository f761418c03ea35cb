"""Space for checkpoints and in shared memory, and the clocks of this machine and of the file system."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from slipway.configs import Spec
from slipway.launch.doctor.commands import printed_by
from slipway.launch.doctor.finding import Finding

POSITION = 60
NEEDED_DISK_GIB = 20.0  # without a recipe: logs, caches and the checkpoints of a toy
NEEDED_SHARED_GIB = 1.0  # data workers and NCCL keep buffers for each rank in /dev/shm
ALLOWED_SKEW_S = 2.0  # with more, make, access tokens and the order of logs go wrong
GIB = 2**30


def findings(spec: Spec | None) -> list[Finding]:
    folder = _existing(Path(spec.run.dir if spec else ".").expanduser().resolve())
    return [_disk(folder, spec), *_shared_memory(), *_clock(folder), *_ntp()]


def _existing(folder: Path) -> Path:
    """``folder``, or the nearest folder above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _disk(folder: Path, spec: Spec | None) -> Finding:
    needed, reason = NEEDED_DISK_GIB, ""
    if spec is not None:
        from slipway import planner

        memory = planner.check(spec).memory
        if memory is not None:  # one more than is kept: the new checkpoint is complete before an old one is deleted
            needed = memory.checkpoint_gib * (spec.run.keep_checkpoints + 1)
            reason = f" for {spec.run.keep_checkpoints} checkpoints and one more"
    free = shutil.disk_usage(folder).free / GIB
    fix = "set run.dir= to a folder with more space, or a smaller run.keep_checkpoints"
    return Finding(f"disk of {folder}", f"{free:,.0f} GiB free", f"{needed:,.0f} GiB{reason}", free >= needed, fix)


def _shared_memory() -> list[Finding]:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return []
    free = shutil.disk_usage(shared).free / GIB
    good = free >= NEEDED_SHARED_GIB
    fix = "docker run --ipc=host, or --shm-size=8g"
    return [Finding("/dev/shm", f"{free:.1f} GiB free", f"{NEEDED_SHARED_GIB:.0f} GiB", good, fix)]


def _clock(folder: Path) -> list[Finding]:
    """This machine's clock against the file system's, which on a cluster is the clock of another machine."""
    if not os.access(folder, os.W_OK):
        return []
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".slipway-clock-") as file:
        before = time.time()
        file.write(b"x")
        file.flush()
        skew = Path(file.name).stat().st_mtime - before
    found, wanted = f"{skew:+.1f} s from the file system's", f"within {ALLOWED_SKEW_S:.0f} s"
    fix = "chronyc makestep, on the machine whose clock is wrong"
    return [Finding("clock", found, wanted, abs(skew) <= ALLOWED_SKEW_S, fix)]


def _ntp() -> list[Finding]:
    synchronized = printed_by("timedatectl", "show", "-p", "NTPSynchronized", "--value")
    if not synchronized:
        return []
    return [Finding("NTP", synchronized, "yes", synchronized == "yes", "systemctl enable --now chronyd")]
