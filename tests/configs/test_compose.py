"""The composition of a recipe equals Hydra's, and a value means what it means in Hydra's grammar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose as compose_by_hydra
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from slipway import configs
from slipway.configs import Refusal, load
from slipway.configs.compose import compose
from slipway.configs.files import GROUPS, ROOT, parse_yaml
from slipway.configs.overrides import text_of, value_of

OVERRIDES: tuple[dict[str, str], ...] = (
    {},
    {"gpu": "h200", "layout.tp": "2", "optim.lr": "1e-4"},
    {"model": "llama3_8b", "precision": "mxfp8", "cluster": "dgx_b200"},
    {"cluster": "gb200_nvl72", "cluster.env.NCCL_DEBUG": "INFO", "cluster.sbatch": "{qos: high}"},
    {"data": "indexed", "data.paths": "[a,b]", "data.tokenizer": "'a b'", "layout.sp": "null", "run.resume": "False"},
)


@pytest.mark.parametrize("recipe", configs.recipe_names())
def test_composition_equals_hydras(recipe: str) -> None:
    for given in OVERRIDES:
        words = [key + "=" + text if key in GROUPS else f"++{key}={text}" for key, text in given.items()]
        with initialize_config_dir(str(ROOT), version_base="1.3"):
            theirs = OmegaConf.to_container(compose_by_hydra("spec", overrides=[f"recipe={recipe}", *words]))
        groups = {key: text for key, text in given.items() if key in GROUPS}
        values = {key: value_of(key, text) for key, text in given.items() if key not in GROUPS}
        assert compose(recipe, groups, values) == theirs


@pytest.mark.parametrize(
    "text",
    "8|-8|+8|0|007|1_000|08|1.5|-.5|1.|1e-4|1e4|1.5E+3|1_0.5|nan|inf|-inf|true|False|TRUE|null|NULL|word|a_b|a/b|a-b|a.b|4:00|"
    "04:00:00|/a/b.c|a@b|'quoted text'|\"text\"|[1,2]|[a,'b c']|{a: 1}|{a: [1, b]}|a:b|a%b|-x|1a|a1|yes|on|x y|"
    "99999999999999999999|'true'|'8'".split("|"),
)
def test_a_value_means_what_it_means_to_hydra(text: str) -> None:
    parsed: Any = OverridesParser.create().parse_override(f"++key={text}").value()
    assert repr(value_of("key", text)) == repr(parsed)
    assert type(value_of("key", text)) is type(parsed)


def test_an_empty_value_is_empty_text() -> None:
    assert value_of("cluster.account", "") == ""
    assert load("llama3_8b", ["cluster.account="]).spec.cluster.account == ""


@pytest.mark.parametrize("text", ["[1", "{a", "'a", "a,b", "range(1,3)", "choice(a,b)"])
def test_what_is_no_single_value_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(Refusal) as refused:
        value_of("layout.tp", text)
    assert f"layout.tp={text}" in refused.value.sentence()
    assert "\n" not in refused.value.sentence()


def test_times_and_dates_of_a_file_are_text(tmp_path: Path) -> None:
    """YAML 1.1 reads 12:00:00 as 43,200, which sbatch would take as minutes."""
    site = tmp_path / "site.yaml"
    site.write_text("executor: slurm\ntime: 12:00:00\nsbatch: {begin: 2026-01-31}\n")
    cluster = load("llama3_8b", [f"cluster={site}"]).spec.cluster
    assert (cluster.time, cluster.sbatch) == ("12:00:00", {"begin": "2026-01-31"})


def test_numbers_of_a_file_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "numbers.yaml"
    path.write_text("a: 1e-5\nb: 1.0e-05\nc: 007\nd: 12\ne: .5\nf: -3\ng: 1.\nh: 1e5x\n")
    assert parse_yaml(path) == {"a": 1e-5, "b": 1e-5, "c": "007", "d": 12, "e": 0.5, "f": -3, "g": 1.0, "h": "1e5x"}


def test_a_site_may_use_the_shells_variables_in_its_setup_only(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("executor: slurm\nsetup: ['cd ${HOME}']\n")
    assert load("llama3_8b", [f"cluster={site}"]).spec.cluster.setup == ["cd ${HOME}"]
    site.write_text("executor: slurm\nenv: {CACHE: '${HOME}/cache'}\n")
    with pytest.raises(Refusal, match=r"cluster\.env\.CACHE=\$\{HOME\}/cache refers to another value"):
        load("llama3_8b", [f"cluster={site}"])


@pytest.mark.parametrize("content", ["- a\n", "text\n", "", "a: [\n", "a: b: c\n"])
def test_a_cluster_file_that_holds_no_cluster_is_refused(tmp_path: Path, content: str) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(content)
    with pytest.raises(Refusal) as refused:
        load("llama3_8b", [f"cluster={site}"])
    assert str(site) in refused.value.sentence()
    assert "configs/cluster/dgx_h100.yaml" in refused.value.sentence()
    assert "\n" not in refused.value.sentence()


@pytest.mark.parametrize("value", [None, True, False, 3, 0.25, 1e-05, "fp8_current", ["mlp", "layernorm"]])
def test_the_text_of_a_value_is_read_as_that_value(value: Any) -> None:
    assert value_of("layout.x", text_of(value)) == value
