"""Factories, the front door, the export, and the reviewed difference from upstream."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from slipway import configs
from slipway.configs import Refusal
from slipway.recipes import deepseek, llama3
from slipway.recipes.factory import PARAMETERS, overrides
from tests import forked

ROOT = Path(__file__).parents[2]
NEMO = Path(sys.executable).parent / "nemo"
# of every kind of model, one whose recipe NeMo has under the same name
REVIEWED = (
    "llama3_8b llama3_70b mixtral_8x22b deepseek_v3 nemotron4_15b gpt3_175b qwen3_30b_a3b baichuan2_7b chatglm3_6b "
    "gemma_2b gemma2_2b gemma3_1b mistral_7b phi3_mini_4k_instruct starcoder_15b starcoder2_3b qwen25_500m "
    "nemotron3_8b llama31_nemotron_nano_8b deepseek_v2_lite"
).split()


def _nemo(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "COLUMNS": "300", "NO_COLOR": "1"}
    return forked.nemo("llm", "pretrain", *words, cwd=cwd, environment=environment)


def test_every_recipe_has_a_factory_in_its_familys_module() -> None:
    families = {configs.headline(name)[0].family for name in configs.recipe_names()}
    found = [name for family in families for name in dir(import_module(f"slipway.recipes.{family}"))]
    assert sorted(found) == configs.recipe_names()
    for name in configs.recipe_names():
        module = import_module(f"slipway.recipes.{configs.headline(name)[0].family}")
        factory = getattr(module, name)
        assert (factory.__module__, factory.__name__) == (module.__name__, name)
        assert factory.__doc__.startswith(f"Pretrain {name}: ")
    assert "8 of 256 experts and a shared one" in str(deepseek.deepseek_v3.__doc__)
    with pytest.raises(AttributeError, match=r"'slipway.recipes.llama3' has no recipe 'mixtral_8x7b'"):
        llama3.mixtral_8x7b  # noqa: B018


def test_a_new_model_needs_only_its_yaml_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", root)
    for group in ("model", "recipe"):
        text = (root / group / "llama32_3b.yaml").read_text().replace("llama32_3b", "llama32_new")
        (root / group / "llama32_new.yaml").write_text(text.replace("num_layers: 28", "num_layers: 30"))
    monkeypatch.setattr(import_module("slipway.configs.files"), "ROOT", root)
    assert str(llama3.llama32_new.__doc__).startswith("Pretrain llama32_new: 30 layers")
    assert "llama32_new" in dir(llama3)


def test_importing_the_factories_imports_neither_torch_nor_nemo() -> None:
    code = (
        "import sys; from slipway.recipes import llama3, deepseek; import slipway.launch.cli; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'nemo', 'nemo_run', 'scipy', 'hydra', "
        "'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_parameters_keep_upstreams_names_and_become_overrides() -> None:
    assert list(PARAMETERS)[:4] == ["dir", "name", "num_nodes", "num_gpus_per_node"]
    assert set(overrides("llama3_70b", {"num_nodes": 8, "precision": "fp8_current", "tp": 4})) == {
        "precision=fp8_current",
        "layout.tp=4",
        "gpus=64",
    }
    with pytest.raises(Refusal, match="llama3_8b has no parameter 'tpp'; did you mean tp"):
        llama3.llama3_8b(tpp=2)


@pytest.mark.nemo
@pytest.mark.parametrize("name", REVIEWED)
def test_the_difference_from_upstream_is_the_reviewed_one(name: str, in_child: Any) -> None:
    def current() -> list[str]:
        from slipway.recipes.upstream import difference

        return difference(name)

    reviewed = [
        line
        for line in (ROOT / "recipes" / "upstream" / f"{name}.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert in_child(current) == reviewed, "numerics changed: review, then python -m slipway.recipes.upstream"
    if name == "deepseek_v3":  # callbacks are compared, with what they set
        assert "trainer.callbacks.DeepEPCallback: on -> (absent)" in reviewed


@pytest.mark.nemo
@pytest.mark.parametrize("precision", ["bf16", "fp8_delayed", "fp8_current", "fp8_blockwise"])
def test_a_full_export_reads_back_equal(precision: str, in_child: Any, tmp_path: Path) -> None:
    def round_trip() -> bool:
        from slipway.launch.export import built_recipe, dump, load

        recipe = built_recipe("llama3_8b", [f"precision={precision}", "gpus=8"])
        path = tmp_path / "recipe.yaml"
        path.write_text(dump(recipe))
        return bool(load(path) == recipe)

    assert in_child(round_trip)


@pytest.mark.nemo
def test_the_attention_backend_is_passed_on_and_exported(in_child: Any, tmp_path: Path) -> None:
    def built() -> list[Any]:
        from slipway.launch.export import built_recipe, dump, load

        chosen = built_recipe("llama3_8b", ["layout.attention_backend=fused"])
        path = tmp_path / "recipe.yaml"
        path.write_text(dump(chosen))
        return [chosen.model.config.attention_backend.name, load(path) == chosen]

    assert in_child(built) == ["fused", True]


@pytest.mark.nemo
@pytest.mark.parametrize(
    "override", ["layout.schedule=gpipe", "model.window_size=4096", "model.normalization=LayerNorm"]
)
def test_what_is_only_planned_is_not_left_out_silently(override: str, in_child: Any) -> None:
    def said() -> str:
        from slipway.launch.export import built_recipe

        with pytest.raises(Refusal) as refusal:
            built_recipe("llama3_8b", [override, "gpus=8", "layout.tp=1", "layout.pp=2"])
        return refusal.value.sentence()

    assert in_child(said).startswith(f"{override} can be planned for but not trained")


@pytest.mark.nemo
def test_fp8_recipes_say_what_they_are(in_child: Any) -> None:
    def plugins() -> dict[str, list[Any]]:
        from slipway.launch.export import built_recipe

        out = {}
        for name in ("fp8_delayed", "fp8_current", "fp8_blockwise"):
            plugin = built_recipe("llama3_8b", [f"precision={name}"]).trainer.plugins
            out[name] = [plugin.fp8, plugin.fp8_recipe]
        out["mxfp8"] = [
            getattr(built_recipe("llama3_8b", ["precision=mxfp8", "gpu=b200"]).trainer.plugins, k)
            for k in ("fp8", "fp8_recipe")
        ]
        return out

    assert in_child(plugins) == {
        "fp8_delayed": ["hybrid", "delayed"],
        "fp8_current": ["hybrid", "tensorwise"],
        "fp8_blockwise": ["e4m3", "blockwise"],
        "mxfp8": ["e4m3", "mxfp8"],
    }


@pytest.mark.nemo
def test_a_factory_does_not_depend_on_the_command_line(in_child: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def configurations() -> list[str]:
        from slipway.recipes.factory import build

        written = []
        for words in (["nemo", "llm", "pretrain"], ["nemo", "llm", "pretrain", "--dryrun"], ["python"]):
            monkeypatch.setattr(sys, "argv", words)
            written.append(repr(build("llama3_8b", dir="runs")))
        return written

    here, dry, python = in_child(configurations)
    assert here == dry == python


@pytest.mark.nemo
def test_the_seed_reaches_mock_data(in_child: Any) -> None:
    def samples() -> list[list[int]]:
        import fiddle as fdl

        from slipway.recipes.factory import build

        drawn = []
        for seed in (1, 1, 2):
            data = fdl.build(build("llama3_tiny", seed=seed).data)
            data.setup()
            drawn += [data._train_ds[i]["tokens"].tolist() for i in range(3)]
        return drawn

    tokens = in_child(samples)
    first, again, other = tokens[:3], tokens[3:6], tokens[6:]
    assert first == again
    assert not any(sample in first for sample in other), "other tokens, not the same ones shifted"


@pytest.mark.nemo
@pytest.mark.slow
def test_ours_win_at_the_front_door_and_overrides_apply(tmp_path: Path) -> None:
    words = ["--factory", "llama3_70b(num_nodes=8, precision='fp8_current')", "trainer.max_steps=10"]
    words += ["optim.config.lr=1e-4", "--dryrun"]
    # The installed command, in a process of its own; the other tests of it are forks.
    done = subprocess.run(
        [NEMO, "llm", "pretrain", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "300", "NO_COLOR": "1"},
        timeout=300,
        check=False,
    )
    text = re.sub(r"[^\w=.,() -]+", " ", done.stdout)
    assert done.returncode == 0, done.stderr
    for expected in ("StagedSchedule(", "max_steps=10", "lr=0.0001", "num_nodes=8", "tensorwise"):
        assert expected in text, expected


@pytest.mark.nemo
@pytest.mark.slow
def test_a_yaml_overlay_applies(tmp_path: Path) -> None:
    (tmp_path / "overlay.yaml").write_text("trainer:\n  max_steps: 7\n")
    done = _nemo("--factory", "llama3_tiny", "--yaml", "overlay.yaml", "--dryrun", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "max_steps=7" in done.stdout


@pytest.mark.nemo
@pytest.mark.slow
def test_what_needs_a_gpu_is_refused_at_once(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = _nemo("--factory", "llama3_8b", "-y", cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("slipway: this recipe trains on GPUs, and torch finds none on ")
    assert "slipway rehearse" in last
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "nothing was written"


@pytest.mark.nemo
@pytest.mark.slow
def test_another_model_in_the_directory_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    (folder / "slipway").mkdir(parents=True)
    import json

    from slipway.recipes.runtime.run_files import RECORD

    (folder / RECORD).write_text(
        json.dumps({"spec": {"model": {"name": "llama3_tiny"}, "data": {"kind": "mock", "paths": [], "tokenizer": ""}}})
    )
    done = _nemo("--factory", "mixtral_tiny(dir=runs,name=a)", "-y", cwd=tmp_path)
    assert done.returncode == 2
    assert "already holds a run with model = llama3_tiny" in done.stderr


@pytest.mark.nemo
@pytest.mark.slow
def test_an_export_trains(tmp_path: Path) -> None:
    environment = os.environ | {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "OMP_NUM_THREADS": "1"}
    keys = ["layout.tp=1", "gpus=1", "run.max_steps=2", "run.checkpoint_every_n_steps=2"]
    for words in (["export", "llama3_tiny", "--out", "r.yaml", *keys], ["run", "r.yaml"]):
        done = forked.slipway(*words, cwd=tmp_path, environment=environment)
        assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs" / "llama3_tiny" / "checkpoints").is_dir()


@pytest.mark.nemo
def test_weights_and_biases_is_one_key(in_child: Any) -> None:
    def project() -> list[Any]:
        from slipway.launch.export import built_recipe

        return [
            built_recipe("llama3_8b", ["run.wandb_project=p"]).log.wandb.project,
            built_recipe("llama3_8b", []).log.wandb,
        ]

    assert in_child(project) == ["p", None]


@pytest.mark.nemo
def test_wandb_and_mlflow_hold_the_losses_without_a_server(tmp_path: Path) -> None:
    """Both in their offline modes, by a real training; MLflow's files are read back by MLflow."""
    from dataclasses import replace

    from slipway.launch.rehearsal import ranks
    from slipway.launch.rehearsal.rehearse import import_nemo
    from slipway.launch.rehearsal.shrink import shrink, single_process

    import_nemo()
    toy = single_process(shrink(configs.load("llama3_8b", ["layout.tp=1", "gpus=1"]).spec))
    kept = replace(
        toy.run,
        dir=str(tmp_path),
        max_steps=3,
        async_save=False,
        val_check_interval=0,
        wandb_project="p",
        mlflow_experiment="e",
    )
    spec = replace(toy, name="a", run=kept)

    def train(rank: int) -> dict[str, list[float]]:
        import os

        import fiddle as fdl

        from slipway.recipes.build import build

        os.environ["WANDB_MODE"] = "offline"
        recipe = build(spec, cpu=True)
        recipe.log.ckpt.save_optim_on_train_end = False
        fdl.build(recipe)()
        import wandb
        from mlflow.tracking import MlflowClient

        wandb.finish()

        client = MlflowClient(f"file:{tmp_path}/mlruns")
        runs = client.search_runs([e.experiment_id for e in client.search_experiments() if e.name == "e"])
        return {
            r.info.run_name: [m.value for m in client.get_metric_history(r.info.run_id, "reduced_train_loss")]
            for r in runs
        }

    losses = ranks.run(1, train, timeout_s=200).results[0]
    assert list(losses) == ["a"]
    assert len(losses["a"]) == 3
    assert all(5 < loss < 9 for loss in losses["a"])
    offline = list((tmp_path / "a").rglob("*.wandb"))
    assert len(offline) == 1
    assert offline[0].stat().st_size > 500
    from slipway.launch.runs.read import read_run
    from slipway.launch.runs.summary import summarize

    assert (summarize(read_run(tmp_path / "a")).data_time_s or 0) > 0
