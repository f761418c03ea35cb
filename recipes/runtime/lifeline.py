"""What ties the processes of a rank together, so that nothing of a run outlives it, however it ends.

- The kernel kills a rank when the process that started it ends (torchrun, or Lightning's first rank), and kills what
  the rank forks, such as checkpoint writers and data workers, when the rank ends (PR_SET_PDEATHSIG).
- A :mod:`.warden` beside each rank ends what the kernel cannot know of, and says how a rank died that could not.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from slipway.configs import Spec
from slipway.configs.blend import prefixes
from slipway.configs.schema import DataKind, Resilience
from slipway.recipes.runtime import hang, run_lock, warden
from slipway.recipes.runtime.parent import die_with_parent
from slipway.recipes.runtime.run_files import FAILURE, HANG, OWNER

_forking: dict[str, int] = {}


def global_rank() -> int:
    """This process's rank, by what its launcher says; 0 where nothing does."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def launcher() -> int:
    """The process that started this rank and waits for it; 0 for a command that a person started."""
    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    return os.getppid() if under_torchrun or int(os.environ.get("LOCAL_RANK") or 0) > 0 else 0


def tie_to_launcher() -> None:
    """Let the kernel kill this rank when its launcher ends; end it at once if that has happened."""
    parent = launcher()
    if not parent:
        return
    die_with_parent()
    try:
        command = Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        command = b""
    if os.getppid() != parent or not (b"python" in command or b"torchrun" in command):
        print("slipway: what started this rank has ended", file=sys.stderr, flush=True)
        os._exit(1)


def _before_fork() -> None:
    # The signal comes when the forking thread ends, not its process.
    main = threading.current_thread() is threading.main_thread()
    _forking.update(pid=os.getpid(), main=int(main))


def _in_forked_child() -> None:
    if _forking["main"]:
        die_with_parent()
        if os.getppid() != _forking["pid"]:
            os._exit(1)


class Pulse(pl.Callback):
    """Tells the warden of every step."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        tell(self.process, "begin")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        tell(self.process, f"step {trainer.global_step}")

    def on_validation_batch_end(self, *args: Any) -> None:
        tell(self.process, "busy")

    def on_save_checkpoint(self, *args: Any) -> None:
        tell(self.process, "busy")


def tell(process: subprocess.Popen[bytes], line: str) -> None:
    """Say a line to the warden, which may be gone."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        os.write(process.stdin.fileno(), f"{line}\n".encode())


def _files(spec: Spec) -> dict[str, int]:
    """The data that the run maps into memory, and their sizes."""
    if spec.data.kind is not DataKind.indexed:
        return {}
    paths = [Path(f"{prefix}.{end}") for prefix in prefixes(spec.data) for end in ("bin", "idx")]
    return {str(path): path.stat().st_size for path in paths if path.is_file()}


def _wait_for_other_ranks(trainer: pl.Trainer) -> None:
    """Lightning's first rank starts the others and does not wait for their end, at which they would be killed."""
    for process in getattr(trainer.strategy.launcher, "procs", []):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=warden.ENDING_S)


@contextlib.contextmanager
def tied(spec: Spec, run_dir: Path, trainer: pl.Trainer) -> Iterator[None]:
    """Run one rank's training: nothing of it stays behind, and no other run trains in its folder.

    Raises:
        Refusal: another run trains in the folder.
    """
    tie_to_launcher()
    if not _forking:
        _before_fork()
        os.register_at_fork(before=_before_fork, after_in_child=_in_forked_child)
    rank = global_rank()
    lock = run_lock.acquire(run_dir) if rank == 0 else None
    stacks = os.memfd_create("stacks")
    faulthandler.register(hang.DUMP, file=stacks, all_threads=True)
    order = {
        "rank": rank,
        "pid": os.getpid(),
        "parent": launcher(),
        "owner": os.environ.get(OWNER, ""),
        "failure": str(run_dir / FAILURE),
        "hang": str(run_dir / HANG),
        "lock": str(lock or ""),
        "files": _files(spec),
        "world": spec.gpus,
        "hang_s": 0 if spec.run.resilience is Resilience.off else spec.run.hang_timeout_s,
        "stack": stacks,
    }
    command = [sys.executable, "-I", "-S", warden.__file__, json.dumps(order)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, pass_fds=(stacks,)
    )
    trainer.callbacks.append(Pulse(process))  # type: ignore[attr-defined]
    try:
        yield
    except BaseException:
        tell(process, "ending")
        raise
    tell(process, "done")
    _wait_for_other_ranks(trainer)
    if lock:
        run_lock.release(lock)
