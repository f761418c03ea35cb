"""The keys of the data: blends and their weights, and what paths imply."""

from __future__ import annotations

import pytest

from slipway.configs import Refusal, load
from slipway.configs.blend import Source, prefixes, sources, with_prefixes


def test_paths_imply_indexed_data() -> None:
    resolved = load("llama3_8b", ["data.paths=[/d/a]"])
    assert (resolved.spec.data.kind, resolved.spec.data.name) == ("indexed", "indexed")
    assert resolved.provenance["data.kind"] == "follows from data.paths"
    assert load("llama3_8b", ["data=indexed", "data.paths=[/d/a]"]).spec == resolved.spec
    assert load("llama3_8b").spec.data.kind == "mock"


@pytest.mark.parametrize("given", ["[0.3,/d/a,0.7,b/c.d]", "{/d/a: 0.3, b/c.d: 0.7}"])
def test_a_blend_is_a_list_or_a_mapping(given: str) -> None:
    data = load("llama3_8b", [f"data.paths={given}"]).spec.data
    assert data.paths == ["0.3", "/d/a", "0.7", "b/c.d"]
    assert sources(data.paths) == [Source("/d/a", 0.3), Source("b/c.d", 0.7)]
    assert prefixes(data) == ["/d/a", "b/c.d"]
    assert with_prefixes(data, lambda path: f"/root/{path}").paths == ["0.3", "/root//d/a", "0.7", "/root/b/c.d"]


def test_each_split_has_files_of_its_own() -> None:
    words = ["data.paths=[a]", "data.validation_paths={b: 1, c: 3}", "data.test_paths=[d]"]
    words += ["data.validation_sets={web: e}", "run.val_check_interval=9"]
    data = load("llama3_8b", words).spec.data
    assert prefixes(data) == ["a", "b", "c", "d", "e"]
    assert with_prefixes(data, lambda path: f"/root/{path}").validation_sets == {"web": "/root/e"}
    assert data.validation_paths == ["1", "b", "3", "c"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data=mock", "data.paths=[a]"], "data=mock trains on random tokens, and data.paths names files"),
        (["data.kind=mock", "data.paths=[a]"], "data=mock trains on random tokens"),
        (["data=indexed"], "data=indexed needs data.paths"),
        (["data.validation_paths=[a]"], "data=indexed needs data.paths"),
        (["data.paths=[a]", "data.test_paths=[b]"], "data.validation_paths is not"),
        (["data.paths=[a]", "data.validation_paths=[b]", "data.split='1,0,0'"], "nothing is split"),
        (["data.paths=[0.3,a,b]"], "is not a blend"),
        (["data.paths=[0.3,a,0,b]"], "is not a blend"),
        (["data.paths=[a,0.3,b,0.7]"], "is not a blend"),
        (["data.paths=[a]", "data.validation_paths=[0.5]"], "data.validation_paths="),
        (["data.validation_sets={web: a}"], "data.validation_sets names files, and data=mock"),
        (["data.paths=[a]", "data.validation_sets={web: b}", "run.val_check_interval=0"], "means no validation"),
        (["data.paths=[a]", "data.validation_sets={a/b: c}"], "is not a name and a prefix"),
        (["data.paths={a: x}"], "a has the weight x, which is not a number"),
    ],
)
def test_data_that_contradict_each_other_are_refused(words: list[str], expected: str) -> None:
    with pytest.raises(Refusal, match=expected):
        load("llama3_8b", words)
