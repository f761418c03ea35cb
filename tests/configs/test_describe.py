"""The schema documents itself: each key has a description, and what it says of types and defaults is true."""

from __future__ import annotations

import dataclasses

from slipway import configs
from slipway.configs.convert import convert
from slipway.configs.load import schema_keys
from slipway.configs.schema import Choice


def test_every_key_is_described() -> None:
    described = {key.key: key for key in configs.describe()}
    assert list(described) == list(schema_keys())
    assert not [key for key, entry in described.items() if not entry.description.endswith(".")]
    assert not [key.key for key in configs.describe(configs.Calibration) if not key.description.endswith(".")]


def test_a_description_names_type_default_and_legal_values() -> None:
    described = {key.key: key for key in configs.describe()}
    assert described["layout.tp"].type == "int"
    assert described["layout.tp"].default == 1
    assert described["layout.tp"].legal == "a whole number, at least 1"
    assert described["layout.recompute"].choices == ("none", "selective", "full")
    assert described["layout.recompute"].default == "none"
    assert described["layout.sp"].legal == "true or false or null"
    assert described["model.num_layers"].required
    assert described["cluster.env"].type == "dict[str, str]"


def test_every_default_is_itself_legal() -> None:
    for cls in (configs.Layout, configs.Run, configs.Task):
        plain = {f.name: getattr(cls(), f.name) for f in dataclasses.fields(cls)}
        assert convert(cls, plain, "") == cls()


def test_a_choice_is_its_own_word() -> None:
    """Files, JSON and messages hold the word itself, and code may compare with either."""
    for choice in Choice.__subclasses__():
        for member in choice:
            assert member == member.value
            assert f"{member}" == str(member) == member.value
            assert hash(member) == hash(member.value)
