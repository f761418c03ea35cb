"""How long a run trains, and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass

from slipway.configs.schema.legal import Choice, Count, Size
from slipway.configs.schema.stages import Tokens


class Resilience(Choice):
    """What happens when a rank hangs or dies."""

    off = "off"  # hangs are not looked for
    stop = "stop"  # a hang is named and ends the run
    restart = "restart"  # and what started the run starts it again, from its last checkpoint


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long a run trains, and what it keeps."""

    dir: str = "runs"
    """Folder of the runs; each run has a folder of its name in it."""

    max_steps: Size = 100
    """Optimizer steps of the run; where nobody gives them, those of ``max_tokens``, else of the schedule in optim."""

    max_tokens: Tokens = ""
    """Tokens of the run, in place of ``max_steps``, such as 15.6T; ``tokens=`` sets them too."""

    seed: Count = 1234
    """Seed of the initial weights and of the data: the order of samples, and the tokens of mock data."""

    val_check_interval: Count = 0
    """Steps between two validations; 0: no validation."""

    limit_val_batches: Count = 4
    """Batches of one validation."""

    log_every_n_steps: Size = 1
    """Steps between two log lines."""

    checkpoint_every_n_steps: Count = 500
    """Steps between two checkpoints."""

    checkpoint_every_minutes: Count = 30
    """Minutes between two checkpoints."""

    keep_checkpoints: int = 3
    """Newest checkpoints that are kept."""

    async_save: bool = True
    """Whether checkpoints are written while training continues."""

    base: str = ""
    """A run or a checkpoint whose weights training starts from, with a new optimizer, schedule and order of the data.
    A run that has a checkpoint of its own continues from that."""

    resume: bool = True
    """Whether a run continues from its newest checkpoint."""

    verify_checkpoint: bool = True
    """Whether a checkpoint's files are compared with their SHA-256 before a run continues from it: every rank reads its
    share of the bytes once more."""

    accept_changed_data: bool = False
    """Whether a run continues on data whose contents are not those that it has been trained on."""

    resilience: Resilience = Resilience.restart
    """Whether a rank that makes no step for ``hang_timeout_s`` is named with the stacks of all ranks and ends the run,
    and whether slipway launch on this machine then starts it again. On SLURM, cluster.retries does."""

    hang_timeout_s: Size = 600
    """Seconds without a step, a validation batch or a save after which a rank hangs; at least ten usual steps."""

    extend_schedule: bool = False
    """Whether a longer ``max_steps`` stretches the schedule that a checkpoint has fixed."""

    wandb_project: str = ""
    """Log to this project of Weights & Biases too; with WANDB_MODE=offline the log stays on disk."""

    mlflow_experiment: str = ""
    """Log to this MLflow experiment too: into mlruns next to the runs, or to MLFLOW_TRACKING_URI."""
