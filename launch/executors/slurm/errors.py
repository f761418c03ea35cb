"""What SLURM refuses, as one sentence that names the key to change."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable

from slipway.configs import Refusal, Spec

TEST_TIMEOUT_S = 60  # sbatch itself retries for a while when the controller is busy
LIST_TIMEOUT_S = 15


def require_sbatch(spec: Spec) -> None:
    """Refuse to submit from a machine without SLURM's commands."""
    if shutil.which("sbatch") is None:
        raise Refusal(
            f"there is no sbatch on this machine, and cluster={spec.cluster.name} is a SLURM cluster",
            "Run this on its login node; --render shows the script here.",
        )


def ask_slurm(script: str, spec: Spec) -> None:
    """Let sbatch check the script without submitting it.

    Raises:
        Refusal: the controller does not answer, or SLURM would refuse the job.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        words = ["sbatch", "--test-only", file.name]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=TEST_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise Refusal(
                f"SLURM's controller did not answer within {TEST_TIMEOUT_S} s", "Ask sinfo whether the cluster is up."
            ) from None
    if done.returncode:
        raise explain(done.stderr, spec)


def explain(printed: str, spec: Spec) -> Refusal:
    """SLURM's or NeMo-Run's error as one sentence: the first of the known causes whose words it contains."""
    text = printed.lower()
    for words, refusal in _CAUSES:
        if any(word in text for word in words):
            return refusal(spec)
    lines = [line.strip() for line in printed.splitlines() if "error" in line.lower()] or [
        line for line in printed.splitlines() if line.strip()
    ]
    return Refusal(f"SLURM refuses the job: {lines[0] if lines else 'it gives no reason'}")


def _listed(*words: str) -> str:
    """The lines that a SLURM command prints, with commas between; empty if it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIST_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ", ".join(dict.fromkeys(line.strip().rstrip("*") for line in done.stdout.split("\n") if line.strip()))


def _no_controller(spec: Spec) -> Refusal:
    return Refusal("SLURM's controller does not answer", "Ask sinfo whether the cluster is up, and try again.")


def _account(spec: Spec) -> Refusal:
    user = os.environ.get("USER", "root")
    accounts = _listed("sacctmgr", "-n", "-P", "show", "assoc", f"user={user}", "format=account")
    return Refusal(
        f"SLURM knows no account {spec.cluster.account!r} for you on partition {spec.cluster.partition!r}",
        f"Use cluster.account= one of: {accounts or 'ask your site'}.",
    )


def _partition(spec: Spec) -> Refusal:
    partitions = _listed("sinfo", "-h", "-o", "%P")
    return Refusal(
        f"SLURM knows no partition {spec.cluster.partition!r}", f"Use cluster.partition= one of: {partitions}."
    )


def _time_limit(spec: Spec) -> Refusal:
    limits = _listed("sinfo", "-h", "-o", "%P %l")
    return Refusal(
        f"cluster.time={spec.cluster.time} is not a time limit that partition {spec.cluster.partition!r} allows",
        f"Partitions and their limits: {limits}.",
    )


def _nodes(spec: Spec) -> Refusal:
    nodes = _listed("sinfo", "-h", "-o", "%P %D nodes with %G")
    return Refusal(
        f"no partition has {spec.num_nodes} nodes with {spec.cluster.gres or f'{spec.gpus_per_node} GPUs'}",
        f"It has: {nodes}. Change nodes=, cluster.gres or cluster.gpus_per_node.",
    )


def _qos(spec: Spec) -> Refusal:
    return Refusal(f"SLURM refuses the QOS {spec.cluster.sbatch.get('qos', '')!r}", "Change cluster.sbatch.qos.")


def _dependency(spec: Spec) -> Refusal:
    return Refusal("SLURM does not know the job that --after names", "Run squeue --me to list your jobs.")


def _uncommitted(spec: Spec) -> Refusal:
    return Refusal("the repository has changes that are not committed", "Commit them, or launch with --allow-dirty.")


# Words of the error in lower case, and what to say then; the first match counts.
_CAUSES: tuple[tuple[tuple[str, ...], Callable[[Spec], Refusal]], ...] = (
    (
        ("unable to contact slurm controller", "connection refused", "communication connection failure"),
        _no_controller,
    ),
    (("invalid account",), _account),
    (("invalid partition",), _partition),
    (("time limit", "--time"), _time_limit),
    (("gres", "generic resource", "node configuration is not available", "node count"), _nodes),
    (("qos",), _qos),
    (("dependency",), _dependency),
    (("uncommitted changes",), _uncommitted),
)
