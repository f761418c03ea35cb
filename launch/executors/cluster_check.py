"""Refuse a cluster file that could not be written into a script safely, or that holds secrets.

NeMo-Run writes environment values, the image, mounts, log paths and the task's name into its scripts without quotes.
The executors quote what can be quoted; the rest is refused here.
"""

from __future__ import annotations

import re
from pathlib import Path

from slipway.configs import Cluster, Refusal
from slipway.launch.executors.slurm.time_limit import time_limit_seconds

CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY)", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SBATCH_OPTION = re.compile(r"[a-z][a-z-]*")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+=@-]+")


def check_cluster(cluster: Cluster) -> None:
    """Check every field of a cluster that reaches a script.

    Raises:
        Refusal: which key, and what to write instead.
    """
    _check_environment(cluster)
    _check_script_values(cluster)
    _check_time(cluster)
    _check_files(cluster)


def _check_environment(cluster: Cluster) -> None:
    where = f"cluster {cluster.name}: "
    for key, value in cluster.env.items():
        if not _VARIABLE.fullmatch(key):
            raise Refusal(f"{where}env has {key!r}, which is not the name of an environment variable")
        if _SECRET.search(key):
            raise Refusal(
                f"{where}env.{key} would be written into the job's script and its records",
                f"Export {key} in your shell, which sbatch passes to the job, or set cluster.secrets_file to a file "
                "that only you can read.",
            )
        if "\x00" in value:
            raise Refusal(f"{where}env.{key} holds a NUL character")


def _check_script_values(cluster: Cluster) -> None:
    where = f"cluster {cluster.name}: "
    for key, value in cluster.sbatch.items():
        if not _SBATCH_OPTION.fullmatch(key):
            raise Refusal(
                f"{where}sbatch has {key!r}, which is not an option of sbatch",
                "Write it without leading dashes, as in qos: high.",
            )
        _check_one_line(where + f"sbatch.{key}", str(value))
    for name in ("account", "partition", "time", "gres", "array", "container_image", "secrets_file"):
        _check_one_line(where + name, getattr(cluster, name))
    for mount in cluster.container_mounts:
        _check_one_line(where + "container_mounts", mount)
        if "," in mount or not 1 <= mount.count(":") <= 2:
            raise Refusal(
                f"{where}container_mounts has {mount!r}", "Write SOURCE:TARGET or SOURCE:TARGET:ro, without commas."
            )


def _check_one_line(what: str, value: str) -> None:
    """A line break in a quoted #SBATCH value would start a line of shell."""
    if CONTROL_CHARACTER.search(value):
        raise Refusal(f"{what}={value!r} holds a line break or another control character")


def _check_time(cluster: Cluster) -> None:
    where = f"cluster {cluster.name}: "
    limit = time_limit_seconds(cluster.time)
    if limit is not None and 60 * cluster.grace_minutes > limit / 2:
        raise Refusal(
            f"{where}grace_minutes={cluster.grace_minutes:g} leaves less than half of time={cluster.time} for training",
            "Give a longer cluster.time or a shorter cluster.grace_minutes.",
        )
    if cluster.retries and not cluster.requeue:
        raise Refusal(f"{where}retries={cluster.retries} needs requeue=true: a job is retried by requeueing it")


def _check_files(cluster: Cluster) -> None:
    from nemo_run.config import get_nemorun_home

    home = cluster.job_dir or get_nemorun_home()
    if not _PLAIN_PATH.fullmatch(home):
        raise Refusal(
            f"cluster {cluster.name}: job_dir={home!r} cannot be quoted in NeMo-Run's scripts",
            "Use letters, digits and / . _ + = @ - only.",
        )
    if cluster.secrets_file:
        path = Path(cluster.secrets_file).expanduser()
        if path.is_file() and path.stat().st_mode & 0o077:
            raise Refusal(f"{path} can be read by others", f"chmod 600 {path}")
