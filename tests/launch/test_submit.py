"""Launching on this machine, and what a launch refuses before it looks for a cluster. On a real SLURM: tests/slurm."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slipway.configs import Cluster, Refusal, load
from tests import forked

SITE = Cluster(name="site", executor="slurm")


@pytest.mark.nemo
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"env": {"HF_TOKEN": "x"}}, "env.HF_TOKEN would be written into the job's script"),
        ({"env": {"A B": "x"}}, "is not the name of an environment variable"),
        ({"sbatch": {"--qos": "x"}}, "is not an option of sbatch"),
        ({"sbatch": {"comment": "a\nrm -rf /"}}, "holds a line break"),
        ({"account": "a\n#SBATCH --uid=0"}, "holds a line break"),
        ({"container_mounts": ["/a:/b,/c:/d"]}, "Write SOURCE:TARGET"),
        ({"job_dir": "/tmp/$(id)"}, "cannot be quoted"),
        ({"time": "00:10:00"}, "leaves less than half"),
        ({"retries": 1}, "needs requeue=true"),
    ],
)
def test_an_unsafe_cluster_is_refused(in_child: Any, changes: dict[str, Any], expected: str) -> None:
    def ask() -> str:
        from slipway.launch.executors import check_cluster

        try:
            check_cluster(replace(SITE, **changes))
        except Refusal as refusal:
            return refusal.sentence()
        return "accepted"

    assert expected in in_child(ask)


@pytest.mark.nemo
def test_executor_and_recipe_start_the_same_ranks(in_child: Any) -> None:
    """For every cluster of ours: nodes, ranks per node, image and environment come from one spec."""

    def ask() -> list[Any]:
        from slipway.launch.executors import for_spec
        from slipway.planner import choose_layout
        from slipway.recipes.build import build

        out = []
        for cluster, nodes in (("dgx_h100", 2), ("dgx_b200", 4), ("gb200_nvl72", 4)):
            spec = choose_layout(load("llama3_8b", [f"cluster={cluster}", f"nodes={nodes}"]))[0]
            executor, trainer = for_spec(spec), build(spec).trainer
            executor._setup_launcher()
            out.append(
                [
                    executor.nodes,
                    executor.nproc_per_node(),
                    trainer.num_nodes,
                    trainer.devices,
                    spec.gpus,
                    spec.gpu.name,
                ]
            )
        return out

    assert in_child(ask) == [[2, 8, 2, 8, 16, "h100"], [4, 8, 4, 8, 32, "b200"], [4, 4, 4, 4, 16, "gb200"]]


@pytest.mark.nemo
def test_several_values_make_several_runs(in_child: Any) -> None:
    def ask() -> list[Any]:
        from slipway.launch.executors.prepare import spread

        return spread(["precision=bf16,fp8_current", "layout.tp=1,2", "data.paths=[a,b]", "run.max_steps=3"])

    words = [word for word, _ in in_child(ask)]
    assert words == ["bf16-1", "bf16-2", "fp8_current-1", "fp8_current-2"]
    assert all("data.paths=[a,b]" in one and "run.max_steps=3" in one for _, one in in_child(ask))


def test_a_cluster_brings_its_gpu_and_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("executor: slurm\ngpu: b200\ngpus_per_node: 4\ntime: '01:00:00'\n")
    monkeypatch.setenv("SLIPWAY_CLUSTERS", str(tmp_path))
    spec = load("llama3_8b", ["cluster=mine", "nodes=3", "cluster.time=02:00:00"]).spec
    assert (spec.gpu.name, spec.gpus, spec.num_nodes, spec.cluster.time, spec.cluster.name) == (
        "b200",
        12,
        3,
        "02:00:00",
        "mine",
    )
    for wrong, expected in (
        (["nodes=0"], "nodes=0 is not legal"),
        (["cluster=mine", "nodes=2", "gpus=7"], "nodes=2 are 8 GPUs on mine, and gpus=7"),
        (["cluster=min"], "unknown cluster 'min'; did you mean mine"),
        (["name=a/b"], "it must be the name of a folder"),
    ):
        with pytest.raises(Refusal, match=expected):
            load("llama3_8b", wrong)


@pytest.mark.nemo
@pytest.mark.slow
def test_a_toy_is_launched_on_this_machine(tmp_path: Path) -> None:
    """The local executor: torchrun's two ranks over Gloo, in the foreground; a failure is not exit 0."""
    words = [
        "launch",
        "llama3_tiny",
        "cluster=cpu",
        "gpus=2",
        "layout.mbs=2",
        "run.max_steps=2",
        f"run.dir={tmp_path}/runs",
        "--allow-dirty",
    ]
    environment = os.environ | {"NEMORUN_HOME": f"{tmp_path}/nemorun", "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).parent / "slipway"), *words]  # the installed command, in a process of its own
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "given: layout.mbs=2; by default: " in done.stderr
    assert "iteration 1/1" in done.stdout + done.stderr
    assert (tmp_path / "runs/llama3_tiny/slipway/recipe.json").is_file()
    again = forked.slipway(*words, environment=environment)
    assert again.returncode == 2
    assert "has done its 2 steps" in again.stderr


def test_an_executor_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slipway.launch.executors import Launch, backends, executor_named, submit

    (tmp_path / "printer.py").write_text(
        "class Printer:\n"
        "    runs_here = falls_back_to_cpu = True\n"
        "    def validate(self, spec): pass\n"
        "    def render(self, launch, after=''): return f'print {launch.spec.name}'\n"
        "EXECUTOR = Printer()\n"
    )
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(tmp_path)])
    spec = load("llama3_tiny", ["cluster=cpu"]).spec
    spec = replace(spec, cluster=replace(spec.cluster, executor="printer"))
    assert submit.render(Launch(spec, {}, "")) == "print llama3_tiny"
    with pytest.raises(Refusal) as refused:
        executor_named("pbs")
    assert refused.value.sentence() == "cluster.executor=pbs is unknown. Use docker, local, printer or slurm."
