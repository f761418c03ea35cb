"""The stacks behind published measurements: a citation selects one, and every decision gives its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from slipway.configs import Refusal
from slipway.configs import stack as stack_module
from slipway.configs.stack import DECISIONS, FOLDER, UNKNOWN, Stack, stack, stack_of, stacks

FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_file_is_selected_by_its_example_and_gives_a_reason_for_each_decision(path: Path) -> None:
    contents = yaml.safe_load(path.read_text())
    assert contents["name"] == path.stem
    source, framework = contents["example"].rsplit(", ", 1)
    assert stack_of(source, framework).name == path.stem
    decided = {key for key in contents if key in DECISIONS}
    assert decided == set(contents.get("because", {}))
    inherited = stack(contents["extends"]) if contents.get("extends") else Stack(name=path.stem)
    for key in decided:
        assert getattr(stack(path.stem), key) != getattr(inherited, key), f"{key} is what it would be without the line"


def test_a_stack_has_the_decisions_of_the_one_that_it_extends() -> None:
    parent, child = stack("megatron_bridge"), stack("bridge_2025")
    assert child.generation != parent.generation
    for key in set(DECISIONS) - {"generation"}:
        assert getattr(child, key) == getattr(parent, key)
    assert set(child.because) == set(parent.because)


def test_a_citation_that_nothing_matches_is_of_the_unknown_stack() -> None:
    assert stack_of("somebody's table", "their code") == stack(UNKNOWN)
    assert stacks()[-1].name == UNKNOWN


def test_a_citation_that_two_stacks_claim_equally_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"configs/stack/torchtitan.yaml and vtrain.yaml"):
        stack_of("vTrain on torchtitan", "")


def test_a_misspelt_decision_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "typo.yaml").write_text("name: typo\nfused_cross_entropi: true\n")
    monkeypatch.setattr(stack_module, "FOLDER", tmp_path)
    with pytest.raises(Refusal, match="fused_cross_entropi is unknown"):
        stack("typo")
