"""Where a run goes: an executor, and the options that the site asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from slipway.configs.schema.legal import Choice, Count, NonNegative


class Accelerator(Choice):
    """``cpu`` runs the ranks of a toy model over Gloo; ``auto`` is cpu for a toy model on a machine without a GPU."""

    auto = "auto"
    gpu = "gpu"
    cpu = "cpu"


@dataclass(frozen=True)
class _TimeLimit:
    """A time limit as sbatch reads it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""

    def allows(self, value: Any) -> bool:
        return value in ("UNLIMITED", "INFINITE") or bool(re.fullmatch(r"(\d{1,4}-)?\d{1,6}(:\d{1,2}){0,2}", value))

    @property
    def words(self) -> str:
        return "a time limit of SLURM, such as 08:00:00 or 2-12:00:00"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where a run goes: an executor, and the options that the site asks for."""

    name: str
    """Name of the file in configs/cluster, the user's own folder (SLIPWAY_CONFIGS) or that of SLIPWAY_CLUSTERS."""

    executor: str
    """What starts the ranks."""

    accelerator: Accelerator = Accelerator.auto
    """The device that the ranks use."""

    gpu: str = ""
    """The GPU of the nodes, which becomes the default of ``gpu=``."""

    gpus_per_node: Count = 0
    """Ranks per node; 0: the GPU's own ``gpus_per_node``."""

    account: str = ""
    """SLURM account."""

    partition: str = ""
    """SLURM partition."""

    time: Annotated[str, _TimeLimit()] = "04:00:00"
    """SLURM time limit, HH:MM:SS."""

    gres: str = ""
    """SLURM's generic resources, for example gpu:8; empty: the job asks by --gpus-per-node."""

    sbatch: dict[str, str] = field(default_factory=dict)
    """Any other option of sbatch, for example {qos: high, reservation: tuesday}."""

    array: str = ""
    """SLURM job array: several tasks of one run, one after the other, for example 0-9%1."""

    exclusive: bool = True
    """Whether the job has its nodes for itself."""

    requeue: bool = False
    """Whether SLURM requeues the job when a node fails."""

    retries: Count = 0
    """How often the job requeues itself after a failure or an early stop."""

    grace_minutes: NonNegative = 10.0
    """Minutes before the time limit at which the run saves, stops and requeues itself."""

    container_image: str = ""
    """Container image of the ranks; empty: no container."""

    image_has_slipway: bool = False
    """Whether the image holds Slipway; an image with slipway in its name does. A checkout that travels with the job
    wins.
    """

    container_mounts: list[str] = field(default_factory=list)
    """Mounts of the container, HOST:CONTAINER."""

    setup: list[str] = field(default_factory=list)
    """Shell lines that run before the ranks start, for example module load cuda."""

    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of the ranks."""

    secrets_file: str = ""
    """A file of KEY=value lines that the job itself reads; its content is never copied and never printed."""

    job_dir: str = ""
    """Folder of the experiments, visible to login and compute nodes; empty: NeMo-Run's own."""

    price: NonNegative = 0.0
    """Dollars per GPU and hour, which ``price=`` sets too; 0: not stated."""

    mtbf_gpu_hours: NonNegative = 0.0
    """GPU-hours between two interruptions of a run; 0: Llama 3's (configs/reliability)."""

    restart_minutes: NonNegative = 11.0
    """Minutes from an interruption to the first step after it, without the time to read the checkpoint; 11 is the
    median between two retries on 504 B200 (arXiv:2605.09370).
    """

    storage_gb_per_s: NonNegative = 0.0
    """Bandwidth at which the whole run writes and reads checkpoints, GB/s; 0: assumed to be 1 for each node."""

    repair_hours: NonNegative = 24.0
    """Hours until a broken node is back: assumed."""

    source: str = ""
    """Where the values come from."""
