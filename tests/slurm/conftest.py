"""One SLURM for all of these tests, and the project as a commit of its own, so that jobs run what is tested."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.forked import slipway
from tests.slurm.cluster import ACCOUNT, PARTITION, CannotStart, Slurm

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SITE = {
    "executor": "slurm",
    "accelerator": "cpu",
    "gpus_per_node": 1,  # two ranks start twice as fast as four on two cores
    "account": ACCOUNT,
    "partition": PARTITION,
    "gres": "gpu:1",
    "time": "00:10:00",
    "grace_minutes": 0.7,
    "requeue": True,
    "retries": 3,  # four ranks on two cores: SLURM loses patience with a starved node now and then
}


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="slipway-slurm-"))
    folder.chmod(0o755)  # munge refuses a socket in a folder that others cannot enter, as pytest's are
    cluster = Slurm(folder, pyxis=True)
    try:
        cluster.up()
    except CannotStart as reason:
        pytest.skip(f"no SLURM can be started here: {reason}")
    yield cluster
    cluster.down()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working tree as one commit, elsewhere."""
    folder = tmp_path_factory.mktemp("project")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    git = ["git", "-c", "user.name=tests", "-c", "user.email=tests@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "as tested"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    return folder


@dataclass
class Site:
    """A cluster file, a folder for runs, and the commands a user of them types."""

    slurm: Slurm
    project: Path
    folder: Path

    def file(self, **changes: Any) -> Path:
        path = self.folder / "site.yaml"
        path.write_text(yaml.safe_dump(SITE | changes))
        return path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "NEMORUN_HOME": str(self.folder / "nemorun"),
            "SLIPWAY_CLUSTERS": str(self.folder),
            "OMP_NUM_THREADS": "1",
        }

    def slipway(
        self, *words: str, env: dict[str, str] | None = None, timeout: float = 400
    ) -> subprocess.CompletedProcess[str]:
        """``slipway WORDS`` on the login node, in a fork of this process."""
        environment = self.slurm.environment | self.environment | (env or {})
        namespace = self.slurm.namespace
        return slipway(*words, environment=environment, cwd=self.project, namespace=namespace, timeout_s=timeout)

    def launch(
        self,
        name: str,
        *words: str,
        env: dict[str, str] | None = None,
        timeout: float = 400,
        as_a_process: bool = False,
        **site: Any,
    ) -> subprocess.CompletedProcess[str]:
        """``slipway launch llama3_tiny`` on two nodes with TP 2 and ``words``, in a fork or as a process."""
        command = [
            "launch",
            "llama3_tiny",
            f"cluster={self.file(**site)}",
            f"name={name}",
            f"run.dir={self.folder}/runs",
        ]
        given = {w.partition("=")[0] for w in words}
        usual = ["nodes=2", "layout.tp=2", "run.max_steps=4", *([] if "data.paths" in given else ["data=mock"])]
        command += [w for w in usual if w.partition("=")[0] not in given]
        if as_a_process:
            environment = self.environment | (env or {})
            return self.slurm.run("slipway", *command, *words, env=environment, timeout=timeout, cwd=self.project)
        return self.slipway(*command, *words, env=env, timeout=timeout)

    def start(self, name: str, *words: str, **site: Any) -> str:
        """Launch without waiting; the job's number."""
        done = self.launch(name, "--json", *words, **site)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)[0]["job"])

    def run_dir(self, name: str) -> Path:
        return self.folder / "runs" / name

    def log(self, job: str) -> str:
        """Everything the job's ranks printed, over its restarts."""
        return "\n".join(
            p.read_text(errors="replace") for p in sorted((self.folder / "nemorun").rglob(f"log-*_{job}_*.out"))
        )

    def until(self, what: str, ready: Any, seconds: float = 240) -> Any:
        end = time.monotonic() + seconds
        while not (found := ready()):
            assert time.monotonic() < end, f"{what} after {seconds:.0f} s; jobs:\n{self.slurm.run('squeue').stdout}"
            time.sleep(0.5)
        return found

    def state(self, job: str) -> str:
        done = self.slurm.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")
        return done.stdout.strip()

    def ended(self, job: str, seconds: float = 300) -> str:
        """Wait for the job's end, hurrying SLURM's two minutes' wait after a requeue; its last state."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        since = {"": time.monotonic()}

        def look() -> str:
            state = self.state(job)
            if state not in since:
                since.clear()
                since[state] = time.monotonic()
            # not at once: within the second of the requeue the nodes still refuse the job's credential
            if state == "PENDING" and time.monotonic() - since[state] > 5:
                self.slurm.run("scontrol", "update", f"jobid={job}", "starttime=now")
            settled = (
                state == "COMPLETED" or time.monotonic() - since[state] > 10
            )  # before a requeue it is FAILED for a moment
            return state if state in over and settled else ""

        return str(self.until(f"job {job} has not ended", look, seconds))

    def reached(self, job: str, step: int) -> None:
        """Wait until the job has trained ``step``."""
        self.until(f"step {step} is not in the log of job {job}", lambda: f"iteration {step}/" in self.log(job))

    def trained(self, name: str) -> dict[str, Any]:
        done = self.slurm.run("slipway", "report", str(self.run_dir(name)), "--json", env=self.environment)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@pytest.fixture
def site(slurm: Slurm, project: Path, tmp_path: Path) -> Site:
    return Site(slurm, project, tmp_path)
