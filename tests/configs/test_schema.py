"""What the schema refuses, and in which words; who set each value."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from slipway import configs
from slipway.configs import Refusal, load
from slipway.configs.load import ROOT, record_of, spec_from_record


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("layout.tpp=2", "unknown key 'layout.tpp'; did you mean layout.tp"),
        ("layout.tp=x", "layout.tp=x is not legal: it must be a whole number"),
        ("layout.tp=1.5", "it must be a whole number"),
        ("layout.tp=0", "layout.tp=0 is not legal: it must be at least 1"),
        ("gpus=-8", "gpus=-8 is not legal"),
        ("gpu=h10", "unknown gpu 'h10'; did you mean h100"),
        ("precision=fp9", "unknown precision 'fp9'"),
        ("layout.recompute=half", "it must be one of none, selective, full"),
        ("tp", "'tp' is not an override"),
        ("layout.gbs=${gpus}", "layout.gbs=${gpus} refers to another value with ${...}, which is not supported"),
        ("run.dir=${oc.env:HOME}", "not supported"),
        ("data.paths=[a,${nope}]", "not supported"),
        ("model.num_layers=[1", "the override model.num_layers=[1 could not be read"),
    ],
)
def test_bad_overrides_are_refused_in_one_sentence(override: str, words: str) -> None:
    with pytest.raises(Refusal) as refused:
        load("llama3_8b", [override])
    assert words in refused.value.sentence()
    assert "\n" not in refused.value.sentence()


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(Refusal, match="did you mean llama3_8b"):
        load("lama3_8b")


def test_every_file_composes() -> None:
    for name in configs.recipe_names():
        assert load(name).spec.name == name
    for name in configs.model_names():
        assert configs.model(name).source
    for name in configs.gpu_names():
        gpu = configs.gpu(name)
        assert gpu.source and gpu.bf16_tflops > 2 * gpu.tf32_tflops * 0.9
    for path in (ROOT / "precision").glob("*.yaml"):
        assert configs.precision(path.stem).name == path.stem
    for path in (ROOT / "cluster").glob("*.yaml"):
        assert load("llama3_8b", [f"cluster={path.stem}"]).spec.cluster.name == path.stem


def test_each_value_remembers_who_set_it() -> None:
    who = load("llama3_70b", ["layout.tp=8", "gpu=h200"]).provenance
    assert who["layout.tp"] == "override"
    assert who["layout.gbs"] == "recipe (configs/recipe/llama3_70b.yaml)"
    assert who["model.num_layers"] == "model fact (configs/model/llama3_70b.yaml)"
    assert who["gpu.memory_gb"] == "fact (configs/gpu/h200.yaml)"
    assert who["layout.cp"] == "default"


def test_a_site_is_one_small_file(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump({"executor": "slurm", "account": "a", "partition": "p", "gpus_per_node": 8}))
    cluster = load("llama3_8b", [f"cluster={site}"]).spec.cluster
    assert (cluster.name, cluster.partition) == ("site", "p")
    site.write_text(yaml.safe_dump({"executor": "slurm", "partitoin": "p"}))
    with pytest.raises(Refusal, match="cluster.partitoin is unknown; did you mean partition"):
        load("llama3_8b", [f"cluster={site}"])


def test_fsdp_is_also_a_switch() -> None:
    assert load("llama3_8b", ["layout.fsdp=true"]).spec.layout.fsdp is configs.Fsdp.megatron
    assert load("llama3_8b", ["layout.fsdp=0"]).spec.layout.fsdp is configs.Fsdp.none


def test_a_record_of_an_earlier_version_is_still_read() -> None:
    """What the schema has gained since is filled in: choices by their defaults, facts from today's files."""
    now = load("llama3_8b", ["gpu=h200", "layout.tp=2"]).spec
    record = record_of(now)
    del (
        record["gpu"]["multiprocessors"],
        record["gpu"]["device_name"],
        record["layout"]["pipeline_layout"],
        record["task"],
    )
    record["run"]["lora_rank"] = 0
    record["layout"]["flexible_pipeline"] = False
    read = spec_from_record(record)
    assert read == dataclasses.replace(now, gpu=dataclasses.replace(now.gpu, device_name=""))
    assert spec_from_record(record | {"run": {"lora_rank": 8}}).task == dataclasses.replace(
        configs.task("lora"), lora_rank=8
    )
    record["layout"]["tpp"] = 2
    with pytest.raises(Refusal, match=r"stored recipe: layout.tpp is unknown"):
        spec_from_record(record)


def test_a_gpu_is_known_by_its_drivers_name() -> None:
    for name in configs.gpu_names():
        assert configs.gpu_of_device(configs.gpu(name).device_name) == configs.gpu(name)
    assert configs.gpu_of_device("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert configs.gpu_of_device("") is None


OWN_MODEL = """name: ours_1b
family: llama3
nemo_config: Llama32Config1B
num_layers: 8
hidden_size: 2048
ffn_hidden_size: 8192
num_attention_heads: 32
num_query_groups: 8
kv_channels: 64
vocab_size: 128256
seq_length: 8192
max_position_embeddings: 8192
"""
OWN_RECIPE = """# @package _global_
defaults:
  - override /model: ours_1b
  - override /optim: llama32
  - override /gpu: h100
name: ours_1b
gpus: 8
layout:
  gbs: 256
"""


def _own_files(folder: Path) -> Path:
    for group, name, text in (("model", "ours_1b", OWN_MODEL), ("recipe", "ours_1b", OWN_RECIPE)):
        (folder / group).mkdir(parents=True)
        (folder / group / f"{name}.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("by", ["SLIPWAY_CONFIGS", "./slipway"])
def test_files_of_the_users_own_are_recipes_too(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder that the variable names and, without it, in ./slipway; a value's origin names their path."""
    folder = _own_files(tmp_path / "slipway")
    monkeypatch.chdir(tmp_path)
    if by == "SLIPWAY_CONFIGS":
        monkeypatch.setenv(by, str(folder))
        monkeypatch.chdir(folder)
    resolved = load("ours_1b", ["layout.tp=2"])
    assert (resolved.spec.model.num_layers, resolved.spec.layout.gbs) == (8, 256)
    assert {"ours_1b"} <= {*configs.recipe_names()} & {*configs.model_names()}
    assert resolved.provenance["layout.gbs"].endswith("recipe/ours_1b.yaml)")
    assert "configs/recipe" not in resolved.provenance["layout.gbs"]
    assert load("llama3_8b", ["model=ours_1b"]).spec.model.num_layers == 8
    assert load("llama3_8b").provenance["layout.gbs"] == "recipe (configs/recipe/llama3_8b.yaml)"


def test_a_file_of_the_users_own_comes_before_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _own_files(tmp_path / "a")
    (folder / "model" / "llama3_8b.yaml").write_text(OWN_MODEL.replace("ours_1b", "llama3_8b"))
    assert configs.model("llama3_8b").num_layers == 32
    monkeypatch.setenv("SLIPWAY_CONFIGS", str(folder))
    assert configs.model("llama3_8b").num_layers == load("llama3_8b").spec.model.num_layers == 8


def test_a_folder_that_is_not_there_is_refused_and_a_python_package_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPWAY_CONFIGS", str(tmp_path / "none"))
    with pytest.raises(Refusal, match="is not a folder"):
        load("llama3_8b")
    monkeypatch.delenv("SLIPWAY_CONFIGS")
    _own_files(tmp_path / "slipway")
    (tmp_path / "slipway" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert "ours_1b" not in configs.recipe_names()
