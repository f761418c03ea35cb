"""Launching on a real SLURM of two nodes: Megatron-Core over Gloo, through NeMo-Run's executor and torchrun."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slipway.configs import Refusal
from tests.forked import forked, nemo
from tests.slurm.conftest import Site

pytestmark = [pytest.mark.slurm, pytest.mark.nemo, pytest.mark.slow]

CANARY = "hf_canary_" + "7f3a91"  # in two, as this file travels with the job


def _stops(log: str) -> list[int]:
    """Steps done at each early stop."""
    return [int(s) for s in re.findall(r"slipway: stopped after step (\d+) of", log)]


def _resumes(log: str) -> set[int]:
    """Steps (from 0) after which an attempt says that it resumes."""
    return {int(s) for s in re.findall(r"resuming from \S+, after step (\d+)", log)}


def test_two_nodes_in_a_container_train_follow_and_report(site: Site) -> None:
    two: dict[str, Any] = {"container_image": "host", "gpus_per_node": 2, "gres": "gpu:2"}
    done = site.launch("a", "--follow", as_a_process=True, **two)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "starts from step 0" in done.stderr
    assert "iteration 3/3" in done.stdout, "the log was followed"
    run = site.trained("a")
    assert (run["steps"], run["ranks"], run["state"]) == (4, 4, "finished")
    assert 5 < run["final_loss"] < 9

    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=site.project, capture_output=True, text=True, check=True
    ).stdout.strip()
    held = json.loads((site.run_dir("a") / "slipway/recipe.json").read_text())
    assert held["source"]["commit"] == head
    assert held["source"]["uncommitted"] == 0
    assert len(held["source"]["lock_sha256"]) == 64
    assert held["spec"]["layout"]["tp"] == 2
    launched = json.loads((site.run_dir("a") / "slipway/launches.jsonl").read_text().splitlines()[-1])
    assert launched["source"]["commit"] == head
    assert launched["set_by"]["run.max_steps"] == "override"
    code = next((site.folder / "nemorun").rglob("code/slipway/launch"))
    assert code.is_symlink(), "the checkout's links are kept"
    assert (code / "executors/submit.py").is_file(), "the committed code was shipped with the job"

    again = site.launch("a", "--json", **two)
    assert again.returncode == 2
    assert "has done its 4 steps" in again.stderr
    longer = site.launch("a", "run.max_steps=6", "run.extend_schedule=true", "layout.tp=1", "--render", **two)
    assert longer.returncode == 0, longer.stderr


def test_before_the_time_limit_it_saves_goes_back_in_the_queue_and_resumes(site: Site) -> None:
    """Two minutes are the least that SLURM's clock can tell from one: the job needs more than one attempt."""
    job = site.start("limit", "run.max_steps=140", "cluster.time=00:02:00", grace_minutes=0.95, retries=9)
    assert site.ended(job, 900) == "COMPLETED"
    stops, resumes = _stops(site.log(job)), _resumes(site.log(job))
    assert stops, site.log(job)[-2000:]
    assert {done - 1 for done in stops} <= resumes, "each resumes at the step that was saved"
    assert site.trained("limit")["steps"] == 140
    assert "its time is nearly up" in site.log(job)


def test_sigterm_saves_goes_back_in_the_queue_and_resumes_at_the_step_it_saved(site: Site) -> None:
    job = site.start("term", "run.max_steps=25", "run.checkpoint_every_n_steps=1000")
    site.reached(job, 5)
    site.slurm.run("scancel", "--signal=TERM", job)
    assert site.ended(job) == "COMPLETED"
    stops, resumes = _stops(site.log(job)), _resumes(site.log(job))
    assert stops[0] > 5
    assert stops[0] - 1 in resumes
    assert f"iteration {stops[0]}/" in site.log(job), "the step after the saved one is trained next"
    assert site.trained("term")["steps"] == 25


def test_a_node_that_dies_requeues_the_job_which_loses_only_what_was_not_saved(site: Site) -> None:
    job = site.start("node", "run.max_steps=24", "run.checkpoint_every_n_steps=5", retries=5)
    site.reached(job, 12)
    site.slurm.kill_node(2)
    site.until("SLURM has not noticed the dead node", lambda: site.state(job) != "RUNNING", 240)
    site.slurm.start_node(2)
    site.slurm.run("scontrol", "update", "nodename=n2", "state=resume")
    assert site.ended(job) == "COMPLETED"
    assert min(_resumes(site.log(job)), default=-1) >= 4
    assert site.trained("node")["steps"] == 24


def test_a_rank_that_dies_fails_the_job_and_the_next_launch_resumes(site: Site) -> None:
    job = site.start("rank", "run.max_steps=20", "run.checkpoint_every_n_steps=5", requeue=False, retries=0)
    site.reached(job, 7)
    assert "Requeue=0" in site.slurm.run("scontrol", "show", "job", job).stdout
    victim = next(p for p in Path("/proc").iterdir() if p.name.isdigit() and _is_rank(p, job, "1"))
    os.kill(int(victim.name), signal.SIGKILL)
    assert site.ended(job) == "FAILED"
    said = json.loads(site.slipway("status", str(site.run_dir("rank")), "--json").stdout)
    assert (said["state"], said["culprit"]["class"], said["culprit"]["rank"]) == ("failed", "killed", 1), said
    assert (said["culprit"]["signal"], said["slurm"]["state"]) == ("SIGKILL", "FAILED")
    assert said["resume"]["possible"] and said["resume"]["after_step"] >= 4
    assert said["resume"]["command"].startswith(f"slipway launch llama3_tiny cluster={site.folder}")
    again = site.launch("rank", "run.max_steps=20", "--follow")
    assert again.returncode == 0, again.stderr[-3000:]
    assert re.search(r"will resume after step [4-9]+ of 20, from step=\d+; same llama3_tiny, same layout", again.stderr)
    assert site.trained("rank")["steps"] == 20


def _is_rank(process: Path, job: str, rank: str) -> bool:
    try:
        environment = (process / "environ").read_bytes()
        return f"SLURM_JOB_ID={job}\0".encode() in environment and f"\0RANK={rank}\0".encode() in environment
    except OSError:
        return False


def test_an_array_goes_on_where_its_last_task_stopped_and_a_chain_waits(site: Site) -> None:
    """Two tasks of one run in turn. A job that waits for them starts when both have succeeded, else never.

    The job that fails has an image that is not there, and its log says so.
    """
    one_rank = ("nodes=1", "layout.tp=1")
    job = site.start("array", *one_rank, "run.max_steps=6", array="0-1%1")
    weights = ("--weights", f"{site.folder}/hugging_face")
    behind = site.start("behind", *one_rank, "run.max_steps=2", "--after", job, *weights)
    failing = site.start("failing", "run.max_steps=2", container_image="no/such:image", retries=0)
    never = site.start("never", "run.max_steps=2", "--after", failing)
    for one in (job, behind, failing, never):
        site.until(
            f"job {one} has not ended",
            lambda one=one: set(site.state(one).split()) <= {"COMPLETED", "FAILED", "CANCELLED"},
            400,
        )
    assert set(site.state(job).split()) == {"COMPLETED"}
    assert site.state(behind) == "COMPLETED"
    assert site.state(failing) == "FAILED"
    outer = "\n".join(p.read_text() for p in (site.folder / "nemorun").rglob(f"sbatch_*_{failing}.out"))
    assert "failed to import docker image: no/such:image" in outer + site.log(failing)
    assert site.state(never) == "CANCELLED"
    assert site.trained("array")["steps"] == 6
    assert not (site.run_dir("never") / "tensorboard").exists()
    site.until("the weights are not written", (site.folder / "hugging_face/model.safetensors").is_file, 200)
    start = site.slurm.run("sacct", "-X", "-n", "-P", "-j", f"{job},{behind}", "-o", "JobID,Start,End").stdout.split()
    times = {line.split("|")[0]: line.split("|")[1:] for line in start}
    assert times[behind][0] >= max(end for name, (_, end) in times.items() if name.startswith(job + "_"))


def test_the_nemo_command_takes_the_cluster_as_its_executor(site: Site) -> None:
    site.file(retries=0)
    sizes = "num_nodes=2,num_gpus_per_node=1,tp=2,max_steps=3"
    recipe = f"llama3_tiny(dir={site.folder}/runs,name=front,data=mock,{sizes})"
    command = ["llm", "pretrain", "--factory", recipe, "run.executor=site", "-y"]
    environment = site.slurm.environment | site.environment
    where: dict[str, Any] = {"environment": environment, "cwd": site.project, "namespace": site.slurm.namespace}
    wrong = nemo(*command, "run.executor.nodes=1", timeout_s=200, **where)
    assert wrong.returncode == 2
    assert "would start 1 nodes and the recipe 2" in wrong.stderr
    done = site.slurm.run("nemo", *command, env=site.environment, timeout=400, cwd=site.project)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    run = site.trained("front")
    assert (run["steps"], run["ranks"]) == (3, 2)


HOSTILE = """it's a "$(touch PWNED)" `touch PWNED`; touch PWNED & \\ $HOME"""


def test_secrets_reach_the_job_and_nothing_else_and_hostile_values_arrive_as_they_are(site: Site) -> None:
    secrets = site.folder / "secrets.env"
    secrets.write_text(f"WANDB_API_KEY={CANARY}-file\n")
    assert "can be read by others" in site.launch("secret", secrets_file=str(secrets)).stderr
    secrets.chmod(0o600)
    (site.folder / "canary").write_text(CANARY)
    same = 'test "$HF_TOKEN" = "$(cat canary)-env" && test "$WANDB_API_KEY" = "$(cat canary)-file"'
    test = f"cd {site.folder}; {same} && echo both are here"
    line = f"{{ set +vx; }} 2>/dev/null; {test}; cd - > /dev/null; set -vx"
    values_of = "[os.environ['SLIPWAY_TEST_A'], os.environ['SLIPWAY_TEST_B']]"
    show = f"python3 -c \"import os, json; print('VALUES', json.dumps({values_of}))\""
    done = site.launch(
        "'x; touch PWNED $(touch PWNED)'",
        "run.max_steps=2",
        "--follow",
        env={"HF_TOKEN": f"{CANARY}-env", "SLIPWAY_TEST_A": HOSTILE, "SLIPWAY_TEST_B": "two\nlines"},
        secrets_file=str(secrets),
        container_image="host",
        container_mounts=[f"{site.folder}:/mnt/a b"],
        setup=[line, show],
        sbatch={"comment": HOSTILE},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert site.trained("x; touch PWNED $(touch PWNED)")["steps"] == 2
    outer = "\n".join(p.read_text() for p in (site.folder / "nemorun").rglob("sbatch_*.out"))
    assert "\nboth are here" in outer
    values = json.loads(outer.split("VALUES ", 1)[1].splitlines()[0])
    assert values == [HOSTILE, "two\nlines"]
    assert not list(site.folder.rglob("PWNED")) + list(site.project.rglob("PWNED"))
    assert not (Path.home() / "PWNED").exists()
    secrets.unlink()
    (site.folder / "canary").unlink()
    held = subprocess.run(["grep", "-rla", CANARY, str(site.folder)], capture_output=True, text=True, check=False)
    assert held.stdout == "", "no file of the run, the experiment or the logs holds it"
    refused = site.launch("secret2", "cluster.env={HF_TOKEN: abc}")
    assert refused.returncode == 2
    assert "would be written into the job's script" in refused.stderr
    assert "abc" not in refused.stderr


def test_what_slurm_would_refuse_is_one_sentence_and_nothing_is_submitted(site: Site, tmp_path: Path) -> None:
    cases: dict[str, tuple[dict[str, Any], list[str], str]] = {
        "partition": (
            {"partition": "nope"},
            [],
            "SLURM knows no partition 'nope'. Use cluster.partition= one of: batch, debug.",
        ),
        "account": (
            {"account": "nope"},
            [],
            "SLURM knows no account 'nope' for you on partition 'batch'. Use cluster.account= one of: research",
        ),
        "gres": ({"gres": "gpu:16"}, [], "no partition has 2 nodes with gpu:16."),
        "gres kind": ({"gres": "tpu:1"}, [], "no partition has 2 nodes with tpu:1."),
        "nodes": ({}, ["nodes=4"], "no partition has 4 nodes with gpu:1."),
        "limit": ({"time": "10:00:00"}, [], "cluster.time=10:00:00 is not a time limit that partition 'batch' allows."),
        "grace": ({"time": "00:01:00"}, [], "leaves less than half of time=00:01:00"),
        "retries": ({"requeue": False, "retries": 1}, [], "retries=1 needs requeue=true"),
        "time": ({"time": "soon"}, [], "cluster.time='soon' is not legal: it must be a time limit of SLURM"),
        "newline": ({"partition": "a\ntouch PWNED"}, [], "holds a line break"),
        "mount": ({"container_image": "host", "container_mounts": ["/a"]}, [], "Write SOURCE:TARGET"),
        "job_dir": ({"job_dir": "/tmp/a b"}, [], "cannot be quoted in NeMo-Run's scripts"),
        "uneven": ({}, ["nodes=1", "layout.tp=1", "layout.gbs=7", "layout.mbs=2"], "gbs"),
        "accelerator": (
            {"accelerator": "tpu"},
            [],
            "cluster.accelerator=tpu is not legal: it must be one of auto, gpu, cpu",
        ),
    }
    asked = {}
    for name, (changes, words, _) in cases.items():
        one = Site(site.slurm, site.project, tmp_path / name.replace(" ", "_"))
        one.folder.mkdir()
        given = ["nodes=2"] if not any(w.startswith("nodes=") for w in words) else []
        asked[name] = [
            f"cluster={one.file(**changes)}",
            f"run.dir={one.folder}/runs",
            "data=mock",
            "layout.tp=2",
            *given,
            *words,
        ]
    before = site.slurm.run("squeue", "-h").stdout

    def submit_all() -> dict[str, str]:
        from slipway.launch.executors import submit

        answers = {}
        for name, words in asked.items():
            try:
                submit.submit(submit.prepare("llama3_tiny", words))
                answers[name] = "submitted"
            except Refusal as refusal:
                answers[name] = refusal.sentence()
        return answers

    environment = site.slurm.environment | site.environment
    where: dict[str, Any] = {"environment": environment, "cwd": site.project, "namespace": site.slurm.namespace}
    done = forked(submit_all, timeout_s=200, **where)
    assert done.code == 0, done.stderr
    answers = done.result
    for name, (_, _, expected) in cases.items():
        assert expected in answers[name], f"{name}: {answers[name]}"
        assert "\n" not in answers[name]
    assert site.slurm.run("squeue", "-h").stdout == before
    assert not list((site.folder / "nemorun" / "experiments").rglob("*_sbatch.sh")), "nothing half-made is left"
    assert not list(tmp_path.rglob("PWNED"))


def test_no_sbatch_no_controller_and_a_dirty_tree_are_one_sentence(site: Site) -> None:
    no_sbatch = subprocess.run(
        [
            sys.executable,
            "-m",
            "slipway.launch.cli",
            "launch",
            "llama3_tiny",
            f"cluster={site.file()}",
            "nodes=2",
            f"run.dir={site.folder}/runs",
            "data=mock",
        ],
        env=os.environ | site.environment | {"PATH": f"{_without_slurm(site.folder)}"},
        capture_output=True,
        text=True,
        cwd=site.project,
        timeout=120,
        check=False,
    )
    assert no_sbatch.returncode == 2, no_sbatch.stderr
    assert no_sbatch.stderr.strip().splitlines()[-1].startswith("slipway: there is no sbatch on this machine")
    elsewhere = {"SLURM_CONF": str(_other_port(site))}
    down = site.launch("down", env=elsewhere)
    assert down.returncode == 2
    assert down.stderr.strip().splitlines()[-1].startswith("slipway: SLURM's controller does not answer")
    changed = site.project / "changed.txt"
    changed.write_text("x")
    try:
        dirty = site.launch("dirty")
        allowed = site.launch("dirty", "--allow-dirty", "--render")
    finally:
        changed.unlink()
    assert dirty.returncode == 2
    assert "has changes that are not committed (changed.txt)" in dirty.stderr
    assert "Traceback" not in no_sbatch.stderr + down.stderr + dirty.stderr
    assert allowed.returncode == 0
    assert allowed.stdout.startswith("#!/bin/bash")


def _without_slurm(folder: Path) -> Path:
    """A PATH that has what git needs and no sbatch."""
    path = folder / "bin"
    path.mkdir()
    for name in ("git", "python3", "sh", "bash"):
        found = next(p for d in os.environ["PATH"].split(":") if (p := Path(d) / name).exists())
        (path / name).symlink_to(found)
    return path


def _other_port(site: Site) -> Path:
    text = Path(site.slurm.environment["SLURM_CONF"]).read_text()
    path = site.folder / "slurm.conf"
    path.write_text(
        re.sub(r"MessageTimeout=\d+", "MessageTimeout=2", re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=16999", text))
    )
    return path


def test_one_command_launches_both_runs_of_a_comparison(site: Site) -> None:
    done = site.launch(
        "ab", "-m", "precision=fp32", "optim.lr=0.001,0.003", "run.max_steps=6", "nodes=1", "layout.tp=1", "--follow"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(re.findall(r"^job \d+", done.stdout, re.MULTILINE)) == 2
    runs = [str(site.run_dir(f"ab-{lr}")) for lr in ("0.001", "0.003")]
    told = site.slurm.run(
        "slipway", "compare", *runs, "--out", f"{site.folder}/compare", "--json", env=site.environment
    )
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["compared"] > 0


def test_the_sniff_test_measures_every_rank_of_every_node(site: Site) -> None:
    done = site.slipway("doctor", "--sniff", f"cluster={site.file()}", "nodes=2", "--json", timeout=300)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert [r["rank"] for r in told["ranks"]] == [0, 1]
    assert {r["node"] for r in told["ranks"]} == {"n1", "n2"}
    assert all(r["gemm_tflops"] > 0 and r["neighbour_gb_per_s"] > 0 for r in told["ranks"])
    assert done.returncode == bool(told["slow"])


def test_the_doctor_holds_the_cluster_against_the_recipe(site: Site) -> None:
    def ask(*words: str) -> dict[str, dict[str, object]]:
        command = [
            "slipway",
            "doctor",
            "llama3_tiny",
            "--only",
            "slurm",
            "--json",
            f"cluster={site.file()}",
            "layout.tp=2",
            *words,
        ]
        done = site.slurm.run(*command, env=site.environment)
        return {f["subject"]: f for f in json.loads(done.stdout)}

    good = ask("nodes=2")
    assert all(f["good"] for f in good.values()), good
    assert good["pyxis"]["found"] == "installed"
    bad = ask("nodes=4", "cluster.time=10:00:00")
    assert {k for k, f in bad.items() if not f["good"]} == {"its nodes", "its time limit"}
    assert bad["its nodes"]["fix"] == "nodes=2"
