"""SLURM's controller, accounting and pyxis, and whether the recipe's partition can take the recipe."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from slipway.configs import Spec
from slipway.launch.doctor.commands import printed_by
from slipway.launch.doctor.finding import Finding
from slipway.launch.executors.slurm.time_limit import time_limit_seconds

POSITION = 40
TO_SUBMIT = "only to submit"


@dataclass(frozen=True)
class _Partition:
    """A line of sinfo: nodes of one partition that have the same GRES."""

    name: str
    state: str  # up, down, drain or inactive
    nodes: int
    gres: str
    time_limit: str


def findings(spec: Spec | None) -> list[Finding]:
    if shutil.which("sinfo") is None and spec is not None and spec.cluster.executor == "slurm":
        wanted = f"sbatch and sinfo, to submit to {spec.cluster.name}"
        return [Finding("SLURM", "none", wanted, False, "run slipway on a login node of the cluster")]
    if shutil.which("sinfo") is None:
        return [Finding("SLURM", "none", TO_SUBMIT, True)]
    listed = printed_by("sinfo", "-h", "-o", "%R|%a|%D|%G|%l")
    if listed is None and not _is_configured():
        return [Finding("SLURM", "its commands, but no cluster", TO_SUBMIT, True)]
    if listed is None:
        return [Finding("SLURM", "the controller does not answer", "sinfo lists partitions", False, "scontrol ping")]
    rows = [line.split("|") for line in listed.splitlines()]
    partitions = [_Partition(name, state, int(nodes), gres, limit) for name, state, nodes, gres, limit in rows]
    pyxis = "--container-image" in (printed_by("srun", "--help") or "")
    out = _services(partitions, pyxis)
    if spec is None or spec.cluster.executor != "slurm":
        return out
    if spec.cluster.container_image and not pyxis:
        fix = "ask your site for pyxis, or set cluster.container_image=''"
        out.append(Finding("container_image", spec.cluster.container_image, "needs pyxis", False, fix))
    return out + _for_recipe(spec, partitions)


def _is_configured() -> bool:
    """Whether this machine belongs to a cluster, besides having SLURM's commands."""
    named = "SLURM_CONF" in os.environ or Path("/etc/slurm/slurm.conf").exists()
    return named or bool(printed_by("systemctl", "is-active", "slurmd"))


def _names(partitions: list[_Partition]) -> str:
    return ", ".join(dict.fromkeys(partition.name for partition in partitions))


def _services(partitions: list[_Partition], pyxis: bool) -> list[Finding]:
    accounting = printed_by("sacct", "-n", "-X", "-S", "now") is not None
    found = "answers" if accounting else "does not answer"
    wanted = "answers: NeMo-Run reads job states from sacct"
    return [
        Finding("SLURM", _names(partitions), "at least one partition", bool(partitions), "scontrol ping"),
        Finding("SLURM accounting", found, wanted, accounting, "ask your site for slurmdbd"),
        Finding("pyxis", "installed" if pyxis else "not installed", "only for container_image", True),
    ]


def _for_recipe(spec: Spec, partitions: list[_Partition]) -> list[Finding]:
    cluster = spec.cluster
    ours = [partition for partition in partitions if cluster.partition in (partition.name, "")]
    if not ours:
        wanted, fix = f"one of {_names(partitions)}", f"cluster.partition={partitions[0].name}"
        return [Finding("partition", cluster.partition, wanted, False, fix)]
    first = ours[0]
    nodes = sum(partition.nodes for partition in ours)
    enough = nodes >= spec.num_nodes
    out = [
        Finding(f"partition {first.name}", first.state, "up", first.state == "up", "use another cluster.partition"),
        Finding("its nodes", str(nodes), f"{spec.num_nodes} for the recipe", enough, f"nodes={nodes}"),
    ]
    if cluster.accelerator != "cpu":
        out.append(_gres(spec, ours))
    return [*out, _time_limit(first.time_limit, cluster.time)]


def _gres(spec: Spec, partitions: list[_Partition]) -> Finding:
    kinds = ", ".join(dict.fromkeys(partition.gres for partition in partitions))
    counted = [int(number) for number in re.findall(r"gpu:(?:[A-Za-z]\w*:)?(\d+)", kinds)]
    wanted = min(spec.gpus, spec.gpus_per_node)
    good = bool(counted) and max(counted) >= wanted
    return Finding("its GRES", kinds, f"{wanted} GPUs a node", good, "set cluster.gpus_per_node to what a node has")


def _time_limit(limit: str, asked: str) -> Finding:
    allowed, needed = time_limit_seconds(limit), time_limit_seconds(asked)
    good = limit == "infinite" or (allowed is not None and needed is not None and needed <= allowed)
    return Finding("its time limit", limit, f"at least {asked}", good, f"cluster.time={limit}")
