"""Check, then hand a run to its executor through NeMo-Run. What would fail in the queue is refused here, in one sentence."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slipway import configs, planner
from slipway.configs import Refusal, Spec
from slipway.configs.load import record_of
from slipway.launch.doctor.sniff import Rank
from slipway.launch.terminal import captured
from slipway.recipes.factory import absolute, check_data, gpu_here, trains_on_cpu
from slipway.recipes.runtime import source as code

LAUNCHES = "slipway/launches.jsonl"  # in the run's folder, one line a submission


@dataclass(frozen=True)
class Launch:
    """One run that is ready to go: what it is, where it goes, what it will do there."""

    spec: Spec
    provenance: dict[str, str]
    outlook: str
    allow_dirty: bool = False

    @property
    def run_dir(self) -> Path:
        return Path(self.spec.run.dir) / self.spec.name


def spread(overrides: list[str]) -> list[tuple[str, list[str]]]:
    """Every combination of the values that ``key=a,b`` lists, each with a word that tells it from the others."""
    keys = [o.partition("=") for o in overrides]
    many = [(k, v.split(",")) for k, _, v in keys if "," in v and not v.startswith(("[", "{", '"', "'"))]
    if not many:
        raise Refusal(
            "-m was given and no override lists several values",
            "Write them with commas: -m precision=bf16,fp8_current.",
        )
    single = [o for o in overrides if o.partition("=")[0] not in dict(many)]
    out = []
    for values in itertools.product(*(v for _, v in many)):
        chosen = [f"{k}={v}" for (k, _), v in zip(many, values, strict=True)]
        out.append(("-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", v) for v in values), single + chosen))
    return out


def prepare(name: str, overrides: list[str], *, suffix: str = "", allow_dirty: bool = False) -> Launch:
    """Everything that can be found out before submitting.

    Raises:
        Refusal: an illegal or too-large recipe, an unsafe or incomplete cluster, uncommitted changes, data that is not there, a run
            folder that holds something else.
    """
    resolved = configs.load(name, overrides)
    spec, chosen_by = planner.choose_layout(resolved)
    if suffix:
        spec = replace(spec, name=f"{spec.name}-{suffix}")
    spec = absolute(spec)
    spec = replace(spec, cluster=replace(spec.cluster, accelerator=_accelerator(spec)))
    planner.require_legal(spec)
    if spec.cluster.accelerator == "gpu":
        verdict = planner.check(spec)
        if verdict.memory and not verdict.memory.fits:
            m = verdict.memory
            raise Refusal(
                f"{spec.name} needs {m.needed_gib:.1f} GiB on stage {m.peak_stage.stage} and a {spec.gpu.name.upper()} has {m.capacity_gib:.1f}",
                f"slipway check {name} shows the nearest layout that fits.",
            )
    check_data(spec)
    if not allow_dirty:
        _require_committed()
    from slipway.launch.runs.outlook import outlook
    from slipway.recipes import build as builder

    provenance = resolved.provenance | ({} if resolved.layout_given else {"layout": chosen_by})
    return Launch(spec, provenance, outlook(builder.run_dir(spec), spec), allow_dirty)


def _accelerator(spec: Spec) -> str:
    asked = spec.cluster.accelerator
    if asked not in ("auto", "gpu", "cpu"):
        raise Refusal(f"cluster.accelerator={asked} is unknown", "Use gpu, cpu or auto.")
    small = trains_on_cpu(spec)
    if asked == "auto":
        asked = "cpu" if small and spec.cluster.executor == "local" and not gpu_here() else "gpu"
    if asked == "cpu" and not small:
        raise Refusal(
            f"{spec.name} is too large to train on CPU ranks, and cluster={spec.cluster.name} has nothing else",
            "Use a toy: llama3_tiny.",
        )
    if asked == "gpu" and spec.cluster.executor != "slurm" and not gpu_here():
        raise Refusal(
            f"{spec.name} needs {spec.gpus} GPUs and this machine has none",
            "Send it to a cluster with cluster=YOURS.yaml, or rehearse it here with slipway rehearse.",
        )
    return asked


def _require_committed() -> None:
    root = code.repository()
    changed = code.uncommitted(root) if root else []
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise Refusal(
            f"{root} has changes that are not committed ({changed[0]}{more}): the job would run code that no commit tells of",
            "Commit them, or launch with --allow-dirty: the job then runs the last commit without them.",
        )


def sniff(name: str, overrides: list[str]) -> list[Rank]:
    """Measure every rank that the recipe would take, through the same executor, and wait for it.

    Raises:
        Refusal: the cluster does not take it, or the ranks did not finish.
    """
    import nemo_run as run

    from slipway.launch.doctor import sniff as measure

    spec = absolute(configs.load(name, overrides).spec)
    spec = replace(
        spec, name="sniff", cluster=replace(spec.cluster, array="", retries=0, accelerator=_accelerator(spec))
    )
    task = Launch(spec, {}, "", allow_dirty=True)
    if spec.cluster.executor != "slurm":
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        words = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={spec.gpus}",
            "-m",
            "slipway.launch.doctor.sniff",
        ]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        log = done.stdout + done.stderr
    else:
        _require_sbatch(spec)
        partial = run.Partial(measure.sniff)
        ask_slurm(_script(task, partial, ""), spec)
        job, folder = _hand_over(task, partial, "")
        with tempfile.TemporaryFile("w+") as said, captured(said):
            follow(job, folder)
            said.seek(0)
            log = said.read()
    ranks = measure.read(log)
    if not ranks:
        raise Refusal(
            f"the ranks did not finish: {log.strip().splitlines()[-1] if log.strip() else 'no log'}",
            "Its log tells why; slipway doctor may too.",
        )
    return ranks


def recipe_of(launch: Launch) -> Any:
    """The ``run.Partial`` of a launch."""
    from slipway.recipes import build as builder

    return builder.build(launch.spec, cpu=launch.spec.cluster.accelerator == "cpu")


def executor_of(launch: Launch, after: str = "") -> Any:
    """The launch's executor, with the committed code and, if given, the jobs it waits for."""
    import nemo_run as run

    from slipway.launch.executors import for_spec, packager

    executor = for_spec(launch.spec)
    if isinstance(executor, run.SlurmExecutor | run.DockerExecutor):
        executor.packager = packager(check=not launch.allow_dirty)
    if after:
        if not isinstance(executor, run.SlurmExecutor):
            raise Refusal("--after is for SLURM's jobs", "Use cluster=YOURS.yaml.")
        if not re.fullmatch(r"\d+(:\d+)*", after):
            raise Refusal(f"--after {after!r} is not a job number", "Write --after 1234 or --after 1234:1235.")
        executor.additional_parameters = (executor.additional_parameters or {}) | {
            "dependency": f"afterok:{after}",
            "kill_on_invalid_dep": "yes",  # else a job behind a failed one waits for ever
        }
    return executor


@contextlib.contextmanager
def _experiment(launch: Launch, recipe: Any, executor: Any) -> Iterator[Any]:
    """A NeMo-Run experiment of one task. NeMo-Run prints to stdout whatever it does: that goes to stderr only if it fails."""
    import nemo_run as run
    from nemo_run.config import set_nemorun_home

    from slipway.launch.executors import task_name

    if launch.spec.cluster.job_dir:
        set_nemorun_home(str(Path(launch.spec.cluster.job_dir).expanduser()))
    with tempfile.TemporaryFile("w+") as said, captured(said):
        try:
            name = task_name(launch.spec)
            with run.Experiment(name) as experiment:
                experiment.add(recipe, executor=executor, name=name)
                yield experiment
        except Refusal:
            raise
        except Exception as error:
            said.seek(0)
            raise _refused(str(error) + "\n" + said.read(), launch.spec) from error


def render(launch: Launch, after: str = "") -> str:
    """The exact script that :func:`submit` would hand to sbatch."""
    return _script(launch, recipe_of(launch), after)


def _script(launch: Launch, recipe: Any, after: str) -> str:
    with _experiment(launch, recipe, executor_of(launch, after)) as experiment:
        experiment.dryrun(log=False, delete_exp_dir=False)
        folder = Path(experiment._exp_dir)
        scripts = list(folder.glob("*_sbatch.sh"))
        text = scripts[0].read_text() if scripts else ""
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()  # the title's folder, if this was its first
    if not text:
        raise Refusal(
            f"cluster={launch.spec.cluster.name} submits no script: its executor is {launch.spec.cluster.executor}"
        )
    return text


def submit(launch: Launch, after: str = "") -> str:
    """Hand the run over; the SLURM job's number, or an empty word where the executor has none.

    Raises:
        Refusal: the cluster does not take it.
    """
    spec = launch.spec
    if spec.cluster.executor == "slurm":
        _require_sbatch(spec)
    recipe = recipe_of(launch)
    if spec.cluster.executor == "slurm":
        ask_slurm(_script(launch, recipe, after), spec)
    if spec.cluster.executor == "docker":
        _require_docker()
    launch.run_dir.mkdir(parents=True, exist_ok=True)
    if spec.cluster.executor != "slurm":
        return _attached(launch, recipe, executor_of(launch, after))
    job, folder = _hand_over(launch, recipe, after)
    _remember(launch, job, folder)
    return job


def submit_weights(launch: Launch, job: str, out: str) -> str:
    """A second job, one rank, that writes the run's weights for Hugging Face when ``job`` has succeeded; its number."""
    import nemo_run as run

    from slipway.launch.weights.export import export

    cluster = replace(launch.spec.cluster, array="", retries=0)
    layout = replace(launch.spec.layout, tp=1, cp=1)  # what the rank's environment is made from
    one = replace(
        launch, spec=replace(launch.spec, name=f"{launch.spec.name}-weights", gpus=1, layout=layout, cluster=cluster)
    )
    task = run.Partial(export, run_dir=str(launch.run_dir), out=str(Path(out).resolve()))
    return _hand_over(one, task, job)[0]


def _hand_over(launch: Launch, recipe: Any, after: str) -> tuple[str, Path]:
    """Submit to SLURM; the job's number, and the folder of its script and logs."""
    with _experiment(launch, recipe, executor_of(launch, after)) as experiment:
        experiment.run(detach=True, tail_logs=False)
        folder, handle = Path(experiment._exp_dir), experiment.jobs[0].handle
    job = re.search(r"/(\d+)", handle.partition("://")[2])
    if job is None:
        raise Refusal(f"sbatch gave no job number for {launch.spec.name}: it said {handle!r}")
    if not launch.spec.cluster.requeue:  # NeMo-Run always submits with --requeue
        subprocess.run(["scontrol", "update", f"jobid={job[1]}", "requeue=0"], capture_output=True, check=False)
    return job[1], folder


def _attached(launch: Launch, recipe: Any, executor: Any) -> str:
    """Run on this machine, in the foreground, its log on the terminal."""
    import nemo_run as run

    from slipway.launch.executors import task_name

    os.environ["PATH"] = (
        f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # torchrun's, where the environment is not activated
    )
    _remember(launch, "", Path())
    name = task_name(launch.spec)
    with run.Experiment(name) as experiment:
        experiment.add(recipe, executor=executor, name=name)
        experiment.run(detach=False, tail_logs=True)
    states = [job.state.name for job in experiment.jobs]  # leaving the experiment is what waits for its jobs
    if states != ["SUCCEEDED"]:
        raise Refusal(
            f"{launch.spec.name} did not finish: {', '.join(states)}", "Its log is above; the same command resumes it."
        )
    return ""


def _require_docker() -> None:
    try:
        from nemo_run.core.execution.docker import get_client

        get_client().ping()
    except Exception as error:  # no package, no daemon, no permission: all mean the same here
        raise Refusal(
            f"no docker daemon answers here ({type(error).__name__})",
            "Start one and pip install docker, or use cluster=local.",
        ) from None


def _remember(launch: Launch, job: str, folder: Path) -> None:
    """One line a submission, beside the run: when, as which job, of which code, asked for how."""
    path = launch.run_dir / LAUNCHES
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "job": job,
        "experiment": str(folder),
        "outlook": launch.outlook,
        "source": code.source(),
        "recipe": record_of(launch.spec),
        "set_by": {k: v for k, v in launch.provenance.items() if v != "default"},
    }
    with path.open("a") as f:
        f.write(json.dumps(line) + "\n")


def log_folder(launch: Launch) -> Path:
    """Where the last submission's logs are."""
    lines = (launch.run_dir / LAUNCHES).read_text().splitlines()
    return Path(json.loads(lines[-1])["experiment"])


# --- what SLURM says, in words that mend it


def _require_sbatch(spec: Spec) -> None:
    if shutil.which("sbatch") is None:
        raise Refusal(
            f"there is no sbatch on this machine, and cluster={spec.cluster.name} is a SLURM cluster",
            "Run this on its login node; --render shows the script here.",
        )


def ask_slurm(script: str, spec: Spec) -> None:
    """Let sbatch judge the script without submitting it.

    Raises:
        Refusal: no controller, or what SLURM would refuse.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        try:
            done = subprocess.run(
                ["sbatch", "--test-only", file.name], capture_output=True, text=True, timeout=60, check=False
            )
        except subprocess.TimeoutExpired:
            raise Refusal(
                "SLURM's controller did not answer within 60 s", "Ask sinfo whether the cluster is up."
            ) from None
    if done.returncode:
        raise _refused(done.stderr, spec)


def _listed(*words: str) -> str:
    """What the cluster has, for a refusal to name."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=15, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ", ".join(dict.fromkeys(w.strip().rstrip("*") for w in done.stdout.split("\n") if w.strip()))


def _refused(said: str, spec: Spec) -> Refusal:
    """SLURM's or NeMo-Run's error as one sentence that names the key to change."""
    c = spec.cluster
    low = said.lower()
    partitions = _listed("sinfo", "-h", "-o", "%P")
    if (
        "unable to contact slurm controller" in low
        or "connection refused" in low
        or "communication connection failure" in low
    ):
        return Refusal("SLURM's controller does not answer", "Ask sinfo whether the cluster is up, and try again.")
    if "invalid account" in low:
        accounts = _listed(
            "sacctmgr", "-n", "-P", "show", "assoc", f"user={os.environ.get('USER', 'root')}", "format=account"
        )
        return Refusal(
            f"SLURM knows no account {c.account!r} for you on partition {c.partition!r}",
            f"Use cluster.account= one of: {accounts or 'ask your site'}.",
        )
    if "invalid partition" in low:
        return Refusal(f"SLURM knows no partition {c.partition!r}", f"Use cluster.partition= one of: {partitions}.")
    if "time limit" in low or "--time" in low:
        limits = _listed("sinfo", "-h", "-o", "%P %l")
        return Refusal(
            f"cluster.time={c.time} is not what partition {c.partition!r} allows",
            f"Partitions and their limits: {limits}.",
        )
    if (
        "gres" in low
        or "generic resource" in low
        or "node configuration is not available" in low
        or "node count" in low
    ):
        nodes = _listed("sinfo", "-h", "-o", "%P %D nodes with %G")
        return Refusal(
            f"no partition has {spec.num_nodes} nodes with {c.gres or f'{spec.gpus_per_node} GPUs'}",
            f"It has: {nodes}. Change nodes=, cluster.gres or cluster.gpus_per_node.",
        )
    if "qos" in low:
        return Refusal(f"SLURM does not take the QOS {c.sbatch.get('qos', '')!r}", "Change cluster.sbatch.qos.")
    if "dependency" in low:
        return Refusal("SLURM does not know the job that --after names", "squeue lists yours.")
    if "uncommitted changes" in low:
        return Refusal(
            "the repository has changes that are not committed", "Commit them, or launch with --allow-dirty."
        )
    lines = [line.strip() for line in said.splitlines() if "error" in line.lower()] or [
        line for line in said.splitlines() if line.strip()
    ]
    return Refusal(f"SLURM does not take it: {lines[0] if lines else 'it does not say why'}")


# --- following a job

SETTLED_S = 15.0  # a job that puts itself back in the queue is FAILED for a moment
_ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
)


def state_of(job: str) -> str:
    """SLURM's word for a job's state, of the attempt that is going on or was the last; empty before accounting knows of it."""
    done = subprocess.run(
        ["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, timeout=60, check=False
    )
    states = done.stdout.split()
    if not states or all(s in _ENDED for s in states):
        done = subprocess.run(
            ["sacct", "-X", "-n", "-P", "-j", job, "-o", "State"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        states = [line.split()[0] for line in done.stdout.splitlines() if line.split()]
    going = [s for s in states if s not in _ENDED]
    bad = [s for s in states if s != "COMPLETED"]
    return (going or bad or states or [""])[0]


def follow(job: str, folder: Path, *, every_s: float = 2.0) -> str:
    """Print the job's log as it grows, over every restart, until it ends; its last state."""
    seen: dict[Path, int] = {}
    state, since = "", time.monotonic()
    while True:
        now = state_of(job)
        if now != state:
            print(f"job {job}: {now.lower() or 'not yet known'}", file=sys.stderr, flush=True)
            state, since = now, time.monotonic()
        for log in sorted(folder.rglob(f"log-*_{job}_*.out")):
            with log.open("rb") as f:
                f.seek(seen.get(log, 0))
                sys.stdout.write(f.read().decode(errors="replace"))
                seen[log] = f.tell()
        sys.stdout.flush()
        if now == "COMPLETED" or (now in _ENDED and time.monotonic() - since >= SETTLED_S):
            return now
        time.sleep(every_s)
