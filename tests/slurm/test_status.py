"""What ``slipway status`` says of jobs of a real SLURM that wait, fail and are requeued; no NeMo is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slipway.configs.record import record_of
from slipway.launch.executors.submissions import LAUNCHES
from tests.launch.written_runs import tiny
from tests.slurm.cluster import ACCOUNT
from tests.slurm.conftest import Site

pytestmark = [pytest.mark.slurm]

OUT_OF_MEMORY = "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


def _submit(site: Site, name: str, body: str, *options: str) -> str:
    """Queue a job as the last launch of a run; its log is where NeMo-Run would put it."""
    logs = site.folder / "experiment" / name
    logs.mkdir(parents=True)
    script = logs / "job.sh"
    script.write_text(f"#!/bin/bash\n{body}\n")
    words = ["sbatch", "--parsable", "-n1", "-A", ACCOUNT, "--requeue", "-o", f"{logs}/log-{ACCOUNT}.{name}_%j_0.out"]
    done = site.slurm.run(*words, *options, str(script))
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    launched = {"job": job, "experiment": str(logs), "command": f"slipway launch llama3_tiny name={name}",
                "folder": "/somewhere", "recipe": record_of(tiny())}  # fmt: skip
    record = site.run_dir(name) / LAUNCHES
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps(launched) + "\n")
    return job


def _status(site: Site, path: Path) -> Any:
    done = site.slurm.run("slipway", "status", str(path), "--json", env=site.environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_jobs_that_wait_fail_and_are_requeued(site: Site) -> None:
    waits = _submit(site, "waits", "exit 0", "--begin=now+1hour")
    fails = _submit(site, "fails", f"echo '{OUT_OF_MEMORY}'; exit 3")
    again = _submit(site, "again", '[ -z "$SLURM_RESTART_COUNT" ] && scontrol requeue $SLURM_JOB_ID && sleep 30')
    site.until("the job has not failed", lambda: site.state(fails) == "FAILED", 60)
    site.until("the job was not requeued", lambda: "REQUEUED" in _accounted(site, again), 60)

    queued = _status(site, site.run_dir("waits"))
    assert (queued["state"], queued["slurm"]["job"], queued["slurm"]["attempts"]) == ("queued", waits, 0)
    assert queued["resume"]["possible"] and queued["resume"]["by_itself"]
    assert queued["resume"]["says"].startswith("starts from step 0")

    failed = _status(site, site.run_dir("fails"))
    assert (failed["state"], failed["culprit"]["class"], failed["culprit"]["rank"]) == ("failed", "gpu-memory", 1)
    assert (failed["slurm"]["state"], failed["slurm"]["exit_code"]) == ("FAILED", "3:0")
    assert failed["slurm"]["nodes"] in ("n1", "n2")
    assert failed["resume"]["command"] == "cd /somewhere && slipway launch llama3_tiny name=fails"

    requeued = _status(site, site.run_dir("again"))
    assert (requeued["state"], requeued["resume"]["by_itself"]) == ("requeued", True)
    assert {one["name"]: one["state"] for one in _status(site, site.folder / "runs")} == {
        "waits": "queued",
        "fails": "failed",
        "again": "requeued",
    }
    site.slurm.run("scancel", waits, again)


def _accounted(site: Site, job: str) -> str:
    return site.slurm.run("sacct", "-X", "-D", "-n", "-P", "-j", job, "-o", "State").stdout
