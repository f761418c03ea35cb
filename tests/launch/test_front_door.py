"""``nemo ... run.executor=CLUSTER``: recipe and executor are one, and a job finds its data and its code."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import forked

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.nemo


def _dryrun(recipe: str, *words: str, cluster: str = "dgx_h100", cwd: Path = ROOT) -> Any:
    return forked.nemo(
        *("llm", "pretrain", "--factory", recipe, f"run.executor={cluster}", "--dryrun", *words),
        cwd=cwd,
        environment=os.environ | {"COLUMNS": "400", "NO_COLOR": "1"},
    )


def _values(done: Any, name: str) -> set[str]:
    """Every value of an argument in what a dry run prints."""
    return set(re.findall(rf"\b{name}='?([^,')\s]+)", done.stdout))


def test_the_executor_starts_the_ranks_of_what_the_recipe_has_become() -> None:
    done = _dryrun("llama3_8b(data=mock)", "trainer.num_nodes=2", "run.executor.time=01:00:00")
    assert done.returncode == 0, done.stderr[-2000:]
    assert _values(done, "num_nodes") == {"2"}
    assert "2" in _values(done, "nodes")
    assert "01:00:00" in done.stdout
    wrong = _dryrun("llama3_8b(data=mock)", "run.executor.nodes=4")
    assert wrong.returncode == 2
    assert "slipway: run.executor=dgx_h100 would start 4 nodes and the recipe 1." in wrong.stderr


def test_the_recipe_is_built_for_the_clusters_gpus() -> None:
    """A toy too, from a machine without a GPU; and for the GPU of the cluster's nodes."""
    toy = _dryrun("llama3_tiny(data=mock)")
    assert toy.returncode == 0, toy.stderr[-2000:]
    assert _values(toy, "accelerator") == {"gpu"}
    other = _dryrun("llama3_8b(data=mock)", cluster="gb200_nvl72")
    assert other.returncode == 0, other.stderr[-2000:]
    assert _values(other, "devices") == {"4"}


def test_a_job_has_data_or_says_mock_at_every_door(tmp_path: Path) -> None:
    done = _dryrun("llama3_8b")
    assert done.returncode == 2
    assert "llama3_8b has no data, and a job on cluster=dgx_h100 would train on random tokens" in done.stderr
    assert _dryrun("llama3_8b", "data=mock").returncode == 0
    missing = _dryrun("llama3_8b", f"data.paths=[{tmp_path}/none]")
    assert missing.returncode == 2
    assert f"there is no {tmp_path}/none.idx" in missing.stderr
    out = tmp_path / "recipe.yaml"
    refused = forked.slipway("export", "llama3_8b", "cluster=dgx_h100", "--out", str(out))
    assert refused.returncode == 2
    assert "has no data" in refused.stderr
    assert not out.exists()
    written = forked.slipway("export", "llama3_8b", "cluster=dgx_h100", "data=mock", "--out", str(out))
    assert written.returncode == 0, written.stderr
    too_large = forked.slipway("export", "llama3_8b", "layout.tp=1", "layout.mbs=16", "--out", str(out))
    assert too_large.returncode == 2
    assert "GiB on stage 0" in too_large.stderr


def test_a_job_ships_slipway_or_its_image_holds_it(tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=tests", "-c", "user.email=tests@example.org"]
    (tmp_path / "mine.py").write_text("")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "mine"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    said = "holds no Slipway, and by its name the image nvcr.io/nvidia/nemo:25.11 holds none either"
    launch = ["launch", "llama3_8b", "cluster=dgx_h100", "data=mock", "--render"]
    for done in (_dryrun("llama3_8b(data=mock)", cwd=tmp_path), forked.slipway(*launch, cwd=tmp_path)):
        assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
        assert said in done.stderr
    for key in ("cluster.image_has_slipway=true", "cluster.container_image=/shared/slipway-0.2.0.sqsh"):
        done = forked.slipway(*launch, key, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "#SBATCH" in done.stdout
    site = forked.slipway("launch", "llama3_8b", f"cluster={ROOT}/docs/site.yaml", *launch[3:], cwd=tmp_path)
    assert site.returncode == 0, site.stderr[-2000:]


def test_a_rank_without_its_gpu_says_so_in_one_sentence() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")

    def rank() -> None:
        import fiddle as fdl

        from slipway.configs import load
        from slipway.recipes.build import build

        fdl.build(build(load("llama3_tiny").spec))

    done = forked.forked(rank)
    assert done.code == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("slipway: ")]
    assert len(said) == 1
    assert "this recipe trains on GPUs, and torch finds none on" in said[0]
    assert "Traceback" not in done.stderr


@pytest.mark.nemo
def test_an_import_of_nemos_without_transformer_engine_is_refused(
    in_child: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would write a checkpoint whose layer norms are lost."""

    def refused() -> str:
        import importlib.util

        import nemo_run as run
        from nemo.collections import llm

        from slipway.configs import Refusal
        from slipway.recipes.front_door import require_layers_of_import

        task = run.Partial(llm.import_ckpt)
        require_layers_of_import(task)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        require_layers_of_import(run.Partial(llm.pretrain))
        with pytest.raises(Refusal) as refusal:
            require_layers_of_import(task)
        return refusal.value.sentence()

    assert "nemo llm import without Transformer Engine" in in_child(refused)
