"""What each fault costs a run: what is lost, what is said, what is left, and how long until it trains again.

    python -m benchmarks.faults [--only NAME...] [--write]

Two ranks of a toy train under torchrun's agent, on CPU over Gloo, and save every second step. Each fault is caused
while they train; then the same run is started again. The agent forks its ranks from one import of NeMo, which takes
15 s more in a real start. ``--write`` puts the table into docs/tutorials/when-a-run-fails.md.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from slipway.configs import Spec, load
from slipway.configs.schema import DataKind
from slipway.launch.rehearsal.rehearse import import_nemo
from slipway.launch.rehearsal.shrink import shrink
from slipway.recipes.runtime.checkpoint_files import held
from slipway.recipes.runtime.run_files import FAILURE, OWNER
from slipway.recipes.runtime.warden import children, started

PAGE = Path(__file__).parents[1] / "docs/tutorials/when-a-run-fails.md"
BEGIN, END = "<!-- python -m benchmarks.faults --write -->", "<!-- end -->"
LEFT_S = 30.0  # after the end of a run, however it ended, nothing of it is alive


def toy(folder: Path, *overrides: str, steps: int = 10_000, every: int = 2, name: str = "a") -> Spec:
    spec = shrink(load("llama3_8b", ["layout.tp=2", "gpus=2", *overrides]).spec)
    run = replace(
        spec.run,
        dir=str(folder),
        max_steps=steps,
        checkpoint_every_n_steps=every,
        checkpoint_every_minutes=0,
        async_save=True,
        val_check_interval=0,
    )
    short = replace(spec.layout, gbs=spec.layout.mbs)
    return replace(spec, name=name, run=run, layout=short)


def _train(spec: Spec, prepare: Callable[[], None]) -> None:
    """One rank."""
    import fiddle as fdl

    from slipway.recipes.build import build

    prepare()
    recipe = build(spec, cpu=True)
    recipe.trainer.enable_progress_bar = False
    fdl.build(recipe)()


def nothing() -> None:
    pass


def _loggers_to(stream: TextIO) -> None:
    """Loggers keep the streams of the process that imported NeMo; pytest captures those."""
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in logger.handlers if isinstance(logger, logging.Logger) else ():
            if type(handler) is logging.StreamHandler:
                handler.setStream(stream)


def _agent(spec: Spec, log: Path, prepare: Callable[[], None], restarts: int) -> int:
    """torchrun's agent in a child of this process; it returns the agent's exit code."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), write_through=True) for fd in (1, 2))
    _loggers_to(sys.stderr)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=spec.gpus,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        start_method="fork",
    )
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # a restarted rank would read addresses of the first start
    try:
        elastic_launch(config, _train)(spec, prepare)
    except BaseException as error:
        print(f"agent: {type(error).__name__}", flush=True)
        return 1
    return 0


@dataclass
class Started:
    """A run that trains: the process that waits for it, and its files."""

    pid: int
    spec: Spec
    log: Path
    family: dict[int, str]
    status: int | None = None  # of the process that waits, once it has ended

    @property
    def folder(self) -> Path:
        return Path(self.spec.run.dir) / self.spec.name

    def look(self) -> None:
        """Remember every process of the run, the wardens included."""
        todo = [self.pid]
        while todo:
            pid = todo.pop()
            self.family.setdefault(pid, started(pid))
            todo += children(pid)

    def rank(self, rank: int) -> int:
        """The process of a rank: the one whose warden says so."""
        for pid in list(self.family):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if any(b"warden.py" in word for word in words) and json.loads(words[4])["rank"] == rank:
                    return int(json.loads(words[4])["pid"])
        raise AssertionError(f"rank {rank} has no warden:\n{self.text()[-3000:]}")

    def alive(self) -> list[int]:
        return [pid for pid, since in self.family.items() if since and started(pid) == since]

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_until(self, true: Callable[[], Any], seconds: float = 90.0) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, self.text()[-4000:]
            self.look()
            time.sleep(0.1)

    def saved(self, least: int = 1) -> bool:
        """Whether so many checkpoints are finished."""
        folders = self.folder.glob("checkpoints/step=*")
        done = [each for each in folders if each.is_dir() and not each.with_name(f"{each.name}-unfinished").exists()]
        return len(done) >= least

    def end(self, seconds: float = LEFT_S) -> int:
        """The exit code of the run, once nothing of it is alive."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and (self.status is None or self.alive()):
            self.look()
            with suppress(ChildProcessError):
                done, found = os.waitpid(self.pid, os.WNOHANG)
                self.status = found if done else self.status
            time.sleep(0.1)
        left = {pid: Path(f"/proc/{pid}/cmdline").read_bytes()[:80] for pid in self.alive()}
        assert not left, f"after {seconds} s: {left}\n{self.text()[-3000:]}"
        assert self.status is not None
        return os.waitstatus_to_exitcode(self.status)


@contextmanager
def owner() -> Iterator[int]:
    """A process that stands for the command that starts torchrun, as ``slipway launch`` says which it is."""
    command = os.fork()
    if command == 0:
        time.sleep(600)
        os._exit(1)
    os.environ[OWNER] = f"{command}:{started(command)}"
    try:
        yield command
    finally:
        with suppress(ProcessLookupError):
            os.kill(command, signal.SIGKILL)
        os.waitpid(command, 0)
        del os.environ[OWNER]


@contextmanager
def run(spec: Spec, prepare: Callable[[], None] = nothing, restarts: int = 0, log: str = "log") -> Iterator[Started]:
    """Start a run, and kill whatever is left of it at the end."""
    import_nemo()
    Path(spec.run.dir).mkdir(parents=True, exist_ok=True)
    path = Path(spec.run.dir) / log
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os._exit(_agent(spec, path, prepare, restarts))
    begun = Started(pid, spec, path, {})
    try:
        yield begun
    finally:
        begun.look()
        for each in begun.alive():
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def flip(path: Path, at: float = 0.5) -> None:
    """Change one bit of a file, at this part of its length."""
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)


def hang_once() -> None:
    """Rank 1 does not come back from its third step; after a restart it does."""
    from slipway.recipes.runtime.record import RunRecord

    after = RunRecord.on_train_batch_end

    def stuck(self: RunRecord, trainer: Any, *args: Any) -> None:
        after(self, trainer, *args)
        if trainer.global_rank == 1 and trainer.global_step == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            threading.Event().wait()

    setattr(RunRecord, "on_train_batch_end", stuck)  # noqa: B010 - as a monkeypatch


@dataclass(frozen=True)
class Fault:
    """One way to break a run.

    Attributes:
        does: in words.
        cause: breaks the run that it gets; returns what the next start needs to be told, as fields of the run.
        prepare: called in every rank before it trains.
        itself: whether the run goes on without a second start.
    """

    does: str
    cause: Callable[[Started], dict[str, Any]]
    prepare: Callable[[], None] = nothing
    itself: bool = False


def _kill(rank: int, how: signal.Signals) -> Callable[[Started], dict[str, Any]]:
    def cause(begun: Started) -> dict[str, Any]:
        os.kill(begun.rank(rank), how)
        return {}

    return cause


def _kill_agent(begun: Started) -> dict[str, Any]:
    os.kill(begun.pid, signal.SIGKILL)
    return {}


def _kill_command(begun: Started) -> dict[str, Any]:
    os.kill(int(os.environ[OWNER].partition(":")[0]), signal.SIGKILL)
    return {}


def _truncate(begun: Started) -> dict[str, Any]:
    os.truncate(f"{begun.spec.data.paths[0]}.bin", 0)
    return {}


def _remove_checkpoints(begun: Started) -> dict[str, Any]:
    shutil.move(begun.folder / "checkpoints", begun.folder.with_name("moved"))
    return {}


def _flip_newest(begun: Started) -> dict[str, Any]:
    os.kill(begun.pid, signal.SIGKILL)
    begun.end()
    newest = held(begun.folder / "checkpoints").newest
    assert newest is not None
    flip(next((newest / "weights").glob("__0_*.distcp")))
    return {}


FAULTS = {
    "kill-0": Fault("SIGKILL of rank 0", _kill(0, signal.SIGKILL)),
    "segv-1": Fault("SIGSEGV of rank 1", _kill(1, signal.SIGSEGV)),
    "agent": Fault("SIGKILL of torchrun", _kill_agent),
    "command": Fault("SIGKILL of the command that started torchrun", _kill_command),
    "stop-1": Fault("SIGSTOP of rank 1, hang_timeout_s=4", _kill(1, signal.SIGSTOP), itself=True),
    "hang-1": Fault("rank 1 never reaches a collective, hang_timeout_s=4", lambda begun: {}, hang_once, itself=True),
    "flip": Fault("one bit flipped in the newest checkpoint, after a kill", _flip_newest),
    "truncate": Fault(".bin cut short while it is read; restored for the next start", _truncate),
    "checkpoints": Fault("checkpoint folder moved away; back for the next start", _remove_checkpoints),
}


@dataclass(frozen=True)
class Outcome:
    """What a fault cost: ``end_s`` to the end of the last process, ``again_s`` from the next start to its first step.

    Of a run that starts again by itself, both are the time without a step.
    """

    said: str
    end_s: float
    left: int
    lost: int
    again_s: float


def _logged_steps(prepare: Callable[[], None], path: Path) -> Callable[[], None]:
    """``prepare``, and each step of rank 0 with its time appended to a file."""

    def both() -> None:
        from slipway.recipes.runtime.lifeline import Pulse

        after = Pulse.on_train_batch_end

        def log(self: Pulse, trainer: Any, *args: Any) -> None:
            after(self, trainer, *args)
            if trainer.global_rank == 0:
                with path.open("a") as file:
                    file.write(f"{time.time()} {trainer.global_step}\n")

        setattr(Pulse, "on_train_batch_end", log)  # noqa: B010 - as a monkeypatch
        prepare()

    return both


def _steps(path: Path) -> list[tuple[float, int]]:
    words = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(float(when), int(step)) for when, step in words]


def _corpus(folder: Path) -> str:
    """A prefix of random tokens, which the toy's vocabulary holds."""
    import numpy as np
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix = str(folder / "text")
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for document in np.random.default_rng(1).integers(1, 500, (400, 100), dtype=np.uint16):
        builder.add_document(document, [len(document)])
    builder.finalize(f"{prefix}.idx")
    return prefix


def measure(fault: Fault, folder: Path) -> Outcome:
    """Cause one fault, and start the run again."""
    prefix = _corpus(folder)
    shutil.copy(f"{prefix}.bin", folder / "whole.bin")
    spec = toy(folder / "runs")
    data = replace(spec.data, kind=DataKind.indexed, paths=[prefix])
    spec = replace(spec, data=data, run=replace(spec.run, hang_timeout_s=4))
    steps = folder / "steps"
    with owner(), run(spec, _logged_steps(fault.prepare, steps), restarts=int(fault.itself)) as begun:
        begun.wait_until(lambda: begun.saved(2))  # a damaged newest one needs an older one
        begin = time.time()
        fault.cause(begun)
        if fault.itself:
            return _by_itself(begun, steps)
        begun.end()
        end_s, left = time.time() - begin, len(begun.alive())
    return _again(spec, folder, end_s, left)


def _by_itself(begun: Started, steps: Path) -> Outcome:
    """The outcome of a hang, after which the agent starts the ranks again: their steps begin at an earlier one."""

    def restarted() -> int:
        counted = [step for _, step in _steps(steps)]
        return next((i for i in range(1, len(counted)) if counted[i] <= counted[i - 1]), 0)

    begun.wait_until(restarted)
    (before, last), (when, step) = _steps(steps)[restarted() - 1 : restarted() + 1]
    said = re.search(r"slipway: (rank .*?); the stacks of", begun.text())
    assert said
    return Outcome(said[1], when - before, 0, last - step + 1, when - before)


def _again(spec: Spec, folder: Path, end_s: float, left: int) -> Outcome:
    steps = folder / "steps"
    before = _steps(steps)
    path = Path(spec.run.dir) / spec.name
    said = json.loads((path / FAILURE).read_text())["message"] if (path / FAILURE).exists() else ""
    if (path.with_name("moved")).exists():
        shutil.rmtree(path / "checkpoints", ignore_errors=True)
        shutil.move(path.with_name("moved"), path / "checkpoints")
    shutil.copy(folder / "whole.bin", folder / "text.bin")
    begin = time.time()
    with run(spec, _logged_steps(nothing, steps), log="again") as again:
        again.wait_until(lambda: len(_steps(steps)) > len(before))
        when, step = _steps(steps)[len(before)]
        passed = re.findall(r"passing over checkpoint (.*?differs from its SHA-256)", again.text())
        gone = re.findall(r"slipway: (.*the command that started this run is gone)", (folder / "runs/log").read_text())
    said = (passed or gone or [said])[0]
    return Outcome(said, end_s, left, max(0, before[-1][1] - step + 1), when - begin)


def table(found: dict[str, Outcome]) -> str:
    """The outcomes in Markdown."""
    lines = [
        "| fault | what is said | processes left | ended after | steps lost | trains again after |",
        "|" + "---|" * 6,
    ]
    for name, each in found.items():
        said = re.sub(r"/\S*/", "", each.said).replace("|", "/").replace(os.uname().nodename, "HOST")
        said = said.split("; it is at ")[0].split(". ")[0]
        lines.append(
            f"| {FAULTS[name].does} | {said} | {each.left} | {each.end_s:.0f} s | {each.lost} | {each.again_s:.0f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure every fault and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    options = parser.parse_args()
    found = {}
    for name in options.only:
        folder = Path(tempfile.mkdtemp(prefix="slipway-faults-"))
        found[name] = measure(FAULTS[name], folder)
        shutil.rmtree(folder)
        print(name, found[name], flush=True)
    print(table(found))
    if options.write:
        text = PAGE.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}")


if __name__ == "__main__":
    main()
