"""A cluster's YAML as a NeMo-Run executor, and every cluster as ``run.executor=NAME`` of the ``nemo`` command.

The recipe and its executor are made from one Spec, so that they start the same ranks. NeMo-Run writes environment values,
image, mounts, log paths and the task's name into its script without quotes: they are quoted here, or refused.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import nemo_run as run
from nemo_run.config import get_nemorun_home

from slipway import configs
from slipway.configs import Cluster, Refusal, Spec
from slipway.launch.executors.limits import seconds
from slipway.recipes.runtime.run_files import STOP_AT
from slipway.recipes.runtime.source import repository

RENDEZVOUS_PORT = 29500
_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+=@-]+")


def environment(spec: Spec) -> dict[str, str]:
    """What every rank's environment holds: what the layout asks for, then the cluster's own over it."""
    if spec.cluster.accelerator == "cpu":
        ranks = {"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    else:
        ranks = {
            "TORCH_NCCL_AVOID_RECORD_STREAMS": "1",  # tensors of finished collectives are freed at once
            "TOKENIZERS_PARALLELISM": "false",  # the data loader forks
            "TORCH_NCCL_HIGH_PRIORITY": "1",
        }
        if not spec.layout.cuda_graphs:  # graphs and expandable segments exclude each other
            ranks["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        if spec.layout.tp > 1 or spec.layout.cp > 1:
            # Kernels must start in program order for their overlap with communication; Blackwell has room for more queues.
            ranks["CUDA_DEVICE_MAX_CONNECTIONS"] = "32" if spec.gpu.compute_capability >= 100 else "1"
    # torchrun hands a SIGTERM on and kills what is left after this long
    ranks["PET_SHUTDOWN_TIMEOUT"] = str(max(30, int(60 * spec.cluster.grace_minutes)))
    return ranks | spec.cluster.env


def check_cluster(cluster: Cluster) -> None:
    """Refuse what could not be written into a script safely, and secrets in a file that gets stored.

    Raises:
        Refusal: which key, and what to write instead.
    """
    where = f"cluster {cluster.name}: "
    for key, value in cluster.env.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise Refusal(f"{where}env has {key!r}, which is no name of an environment variable")
        if _SECRET.search(key):
            raise Refusal(
                f"{where}env.{key} would be written into the job's script and its records",
                f"Export {key} in your shell: sbatch hands it to the job; or put it into a file only you can read and give cluster.secrets_file.",
            )
        if "\x00" in value:
            raise Refusal(f"{where}env.{key} holds a NUL character")
    for key, value in cluster.sbatch.items():
        if not re.fullmatch(r"[a-z][a-z-]*", key):
            raise Refusal(
                f"{where}sbatch has {key!r}, which is no option of sbatch",
                "Write it without dashes in front, as qos: high.",
            )
        _one_line(where + f"sbatch.{key}", str(value))
    for name in ("account", "partition", "time", "gres", "array", "container_image", "secrets_file"):
        _one_line(where + name, getattr(cluster, name))
    for mount in cluster.container_mounts:
        _one_line(where + "container_mounts", mount)
        if "," in mount or not 1 <= mount.count(":") <= 2:
            raise Refusal(
                f"{where}container_mounts has {mount!r}", "Write SOURCE:TARGET or SOURCE:TARGET:ro, without commas."
            )
    limit = seconds(cluster.time)
    if limit is not None and 60 * cluster.grace_minutes > limit / 2:
        raise Refusal(
            f"{where}grace_minutes={cluster.grace_minutes:g} leaves less than half of time={cluster.time} for training",
            "Give a longer cluster.time or a shorter cluster.grace_minutes.",
        )
    if cluster.retries and not cluster.requeue:
        raise Refusal(
            f"{where}retries={cluster.retries} needs requeue=true: a job goes back in the queue by being requeued"
        )
    home = cluster.job_dir or get_nemorun_home()
    if not _PLAIN_PATH.fullmatch(home):
        raise Refusal(
            f"{where}job_dir={home!r} cannot be quoted in NeMo-Run's scripts",
            "Use letters, digits and / . _ + = @ - only.",
        )
    if cluster.secrets_file:
        path = Path(cluster.secrets_file).expanduser()
        if path.is_file() and path.stat().st_mode & 0o077:
            raise Refusal(f"{path} can be read by others", f"chmod 600 {path}")


def _one_line(what: str, value: str) -> None:
    """A line break in a quoted #SBATCH value would start a line of shell."""
    if _CONTROL.search(value):
        raise Refusal(f"{what}={value!r} holds a line break or another control character")


def task_name(spec: Spec) -> str:
    """The run's name as a word that is safe, unquoted, in a script and a path; dots would confuse NeMo-Run's status."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", spec.name).strip("_-") or "run"


_BARE_SRUN = """\
# No container: the same job, in this folder instead of /nemo_run.
srun() {
    local word next= job= words=()
    for word in "$@"; do
        case "$next" in
            mounts) job=${word##*,}; job=${job%:/nemo_run}; next=; continue ;;
            drop) next=; continue ;;
        esac
        case "$word" in
            --container-mounts) next=mounts ;;
            --container-*) next=drop ;;
            /nemo_run/*) words+=("$job/${word#/nemo_run/}") ;;
            *) words+=("$word") ;;
        esac
    done
    command srun --chdir="$job/code" "${words[@]}"
}"""


def setup_lines(spec: Spec) -> str:
    """Shell lines between NeMo-Run's exports and its srun."""
    cluster = spec.cluster
    lines = []
    if cluster.secrets_file:
        path = shlex.quote(str(Path(cluster.secrets_file).expanduser()))
        lines.append(f"{{ set +vx; }} 2>/dev/null; set -a; . {path}; set +a; set -vx  # unseen by the log")
    if not cluster.container_image:
        lines += [_BARE_SRUN, f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"']
    grace = int(60 * cluster.grace_minutes)
    lines += [
        f"# {grace} s before the time limit the ranks save and stop, and this script asks to be run again.",
        'ends=$(squeue -h -j "$SLURM_JOB_ID" -o %e) && ends=$(date -d "$ends" +%s 2>/dev/null) || ends=',
        f"export {STOP_AT}=${{ends:+$((ends - {grace}))}}",
        *cluster.setup,
    ]
    return "\n".join(lines)


def mounts(spec: Spec) -> list[str]:
    """The cluster's mounts, and whatever else of the run lives outside the container: its folder, data and tokenizer."""
    needed = [spec.run.dir, *(str(Path(p).parent) for p in spec.data.paths)]
    if spec.data.tokenizer and Path(spec.data.tokenizer).exists():
        needed.append(spec.data.tokenizer)
    given = list(spec.cluster.container_mounts)
    covered = [m.split(":")[0].rstrip("/") for m in given if m.split(":")[0] == m.split(":")[1]]
    for path in dict.fromkeys(needed):
        if any(path == c or path.startswith(c + "/") for c in covered):
            continue
        if "," in path or ":" in path or _CONTROL.search(path):
            raise Refusal(
                f"{path!r} cannot be mounted into a container", "Give a path without commas, colons and line breaks."
            )
        given.append(f"{path}:{path}")
        covered.append(path)
    return given


def for_spec(spec: Spec) -> run.Executor:
    """The executor that starts exactly the ranks of ``spec``: ``spec.num_nodes`` times its ranks per node, by torchrun."""
    check_cluster(spec.cluster)
    ranks = min(spec.gpus, spec.gpus_per_node)
    if spec.gpus % ranks:
        raise Refusal(
            f"gpus={spec.gpus} is not a multiple of the {ranks} GPUs of a node of {spec.cluster.name}",
            f"Use nodes={spec.gpus // ranks} or {spec.gpus // ranks + 1}.",
        )
    make = {"slurm": _slurm, "docker": _docker, "local": _local}.get(spec.cluster.executor)
    if make is None:
        raise Refusal(f"cluster.executor={spec.cluster.executor} is unknown", "Use local, slurm or docker.")
    return make(spec, ranks)


def _slurm(spec: Spec, ranks: int) -> run.SlurmExecutor:
    cluster = spec.cluster
    more = {k.replace("-", "_"): str(v) for k, v in cluster.sbatch.items()}
    if "segment" in more:  # a block of nodes cannot be larger than the job
        more["segment"] = str(min(int(more["segment"]), spec.num_nodes))
    gpus = cluster.accelerator != "cpu"
    executor = run.SlurmExecutor(
        account=cluster.account or None,
        partition=cluster.partition or None,
        time=cluster.time,
        nodes=spec.num_nodes,
        ntasks_per_node=ranks,
        gres=cluster.gres or None,
        gpus_per_node=ranks if gpus and not cluster.gres else None,
        exclusive=True if cluster.exclusive else None,
        array=cluster.array or None,
        additional_parameters=more or None,
        container_image=shlex.quote(cluster.container_image) if cluster.container_image else None,
        container_mounts=[shlex.quote(m) for m in mounts(spec)] if cluster.container_image else [],
        env_vars={k: shlex.quote(v) for k, v in environment(spec).items()},
        setup_lines=setup_lines(spec),
        job_name_prefix="slipway.",
        launcher=run.Torchrun(rdzv_port=RENDEZVOUS_PORT),
        packager=run.Packager(),
        tunnel=run.LocalTunnel(job_dir=""),
    )
    executor.retries = cluster.retries
    return executor


def _local(spec: Spec, ranks: int) -> run.LocalExecutor:
    if spec.num_nodes > 1 and spec.cluster.accelerator != "cpu":
        raise Refusal(
            f"cluster={spec.cluster.name} is one machine of {ranks} GPUs, and {spec.name} takes {spec.gpus}",
            f"Use gpus={ranks}.",
        )
    return run.LocalExecutor(
        ntasks_per_node=spec.gpus, launcher=run.Torchrun(), env_vars=environment(spec), packager=run.Packager()
    )


def _docker(spec: Spec, ranks: int) -> run.DockerExecutor:
    if spec.num_nodes > 1:
        raise Refusal(
            f"cluster={spec.cluster.name} is one machine of {ranks} GPUs, and {spec.name} takes {spec.gpus}",
            f"Use gpus={ranks}.",
        )
    gpu = spec.cluster.accelerator != "cpu"
    return run.DockerExecutor(
        container_image=spec.cluster.container_image,
        ntasks_per_node=ranks,
        num_gpus=ranks if gpu else None,
        runtime="nvidia" if gpu else None,
        ipc_mode="host",  # NCCL and the data loaders share memory
        volumes=mounts(spec),
        env_vars=environment(spec),
        launcher=run.Torchrun(),
        packager=run.Packager(),
    )


# --- run.executor=NAME of the nemo command


def _recipe_in(arguments: list[str]) -> tuple[str, dict[str, Any]] | None:
    """The recipe that ``nemo llm pretrain --factory`` names, and its arguments."""
    text = ""
    for i, argument in enumerate(arguments):
        if argument == "--factory" and i + 1 < len(arguments):
            text = arguments[i + 1]
        elif argument.startswith("--factory="):
            text = argument.partition("=")[2]
    name, _, rest = text.strip("\"'").partition("(")
    if not name:
        return None
    options: dict[str, Any] = {}
    for pair in filter(None, rest.rstrip(")").split(",")):
        key, _, value = pair.partition("=")
        try:
            options[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            options[key.strip()] = value.strip()
    return name.rpartition(".")[2], options


def _asked(arguments: list[str], *keys: str) -> int | None:
    for argument in arguments:
        key, eq, value = argument.partition("=")
        if eq and key in keys and value.isdigit():
            return int(value)
    return None


def at_front_door(cluster: str, nodes: int | None = None) -> run.Executor:
    """The executor of ``cluster`` for the recipe on this command line.

    Raises:
        Refusal: the executor and the recipe would start different numbers of nodes.
    """
    from slipway.recipes.factory import absolute, overrides

    arguments = sys.argv[1:]
    found = _recipe_in(arguments)
    if found is None or found[0] not in configs.recipe_names():
        raise Refusal(
            f"run.executor={cluster} is for Slipway's recipes", "Name one with --factory, as slipway list shows them."
        )
    name, options = found
    nodes = nodes or _asked(arguments, "run.executor.nodes", "executor.nodes")
    steps = [f"cluster={cluster}", *overrides(name, options)]
    resolved = configs.load(name, steps)
    spec = resolved.spec
    of_recipe = _asked(arguments, "trainer.num_nodes") or spec.num_nodes
    if nodes is not None and nodes != of_recipe:
        raise Refusal(
            f"run.executor={cluster} would start {nodes} nodes and the recipe {of_recipe}",
            f"Give the recipe its nodes, and the executor follows: --factory '{name}(num_nodes={nodes})' run.executor={cluster}.",
        )
    from slipway import planner

    complete = absolute(planner.complete(resolved))
    executor = for_spec(complete)
    Path(complete.run.dir).mkdir(parents=True, exist_ok=True)  # pyxis mounts only what is there
    executor.packager = packager()
    return executor


def packager(*, check: bool = True) -> run.Packager:
    """The committed code of the repository around this folder; none where there is no repository: the installed one is used.

    Args:
        check: refuse what is not committed; NeMo-Run's default leaves it out without a word.
    """
    root = repository()
    return run.GitArchivePackager(basepath=str(root), check_uncommitted_changes=check) if root else run.Packager()


def register() -> None:
    """Every cluster as ``run.executor=NAME``."""
    for name in configs.cluster_names():
        run.cli.factory(_factory(name), target=run.Executor, name=name)


def _factory(cluster: str) -> Any:
    def executor(nodes: int | None = None) -> run.Config[run.Executor]:
        try:
            return at_front_door(cluster, nodes).to_config()
        except Refusal as refusal:
            print(f"slipway: {refusal.sentence()}", file=sys.stderr)
            sys.stderr.flush()
            os._exit(2)  # NeMo-Run swallows what a nested factory raises, and would go on without the executor

    executor.__name__ = cluster
    executor.__doc__ = f"The cluster {cluster} as an executor."
    return executor
