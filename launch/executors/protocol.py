"""What an executor does. To add one, add ``backends/NAME.py``, which defines ``EXECUTOR``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from slipway.configs import Resolved, Spec

if TYPE_CHECKING:
    import nemo_run as run


@dataclass(frozen=True)
class Launch:
    """One run that passed every check and is ready to be submitted.

    Attributes:
        spec: what runs, and on which cluster.
        provenance: for each key of the Spec, what set it.
        outlook: in words, what the run will do: start, resume, continue with another layout.
        allow_dirty: run the last commit although the working tree differs from it.
        task: what every rank calls, as a ``run.Partial``; the recipe of ``spec`` if None.
        recorded: whether the submission is written into the run's folder.
        resolved: the recipe with what the user gave of it; None for a task that is no run.
        command: the command line that launches the run again, and so resumes it; empty where it is not known.
    """

    spec: Spec
    provenance: dict[str, str]
    outlook: str
    allow_dirty: bool = False
    task: Any = None
    recorded: bool = True
    resolved: Resolved | None = None
    command: str = ""

    @property
    def run_dir(self) -> Path:
        return Path(self.spec.run.dir) / self.spec.name


@dataclass(frozen=True)
class Submission:
    """Where a submitted run can be found.

    Attributes:
        job: the scheduler's number of the job; empty where there is none.
        folder: holds the job's script and logs.
    """

    job: str = ""
    folder: Path = Path()


class Executor(Protocol):
    """One way to start ranks.

    Attributes:
        runs_here: the ranks run on this machine, so its GPUs are the ones that count.
        falls_back_to_cpu: with ``accelerator: auto``, a toy trains on CPU ranks where this machine has no GPU.
    """

    runs_here: bool
    falls_back_to_cpu: bool

    def validate(self, spec: Spec) -> None:
        """Raise ``Refusal`` for what this executor cannot start. The cluster need not be reachable."""

    def nemo_run_executor(self, spec: Spec) -> run.Executor:
        """NeMo-Run's executor that starts exactly the ranks of ``spec``."""

    def render(self, launch: Launch, after: str = "") -> str:
        """The exact script that :meth:`submit` would submit; raises ``Refusal`` if this executor has none."""

    def submit(self, launch: Launch, after: str = "") -> Submission:
        """Start the run, or queue it to start when the jobs ``after`` (1234 or 1234:1235) have succeeded.

        Records the submission (see :mod:`.submissions`) as soon as it is accepted. Raises ``Refusal`` if it is not
        accepted and, in the foreground, if the run fails.
        """

    def follow(self, submission: Submission) -> str:
        """Print the job's log as it grows, through every restart, until the job ends. Returns its final state."""
