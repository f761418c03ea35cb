"""configs/levers/nvidia.csv is what NeMo's own scripts and recipes set today."""

from __future__ import annotations

import csv
from typing import Any

import pytest

from slipway import configs
from slipway.configs.levers import TABLE


@pytest.mark.nemo
def test_the_table_is_what_nvidias_scripts_set(in_child: Any) -> None:
    def differences() -> list[str]:
        from slipway.recipes.nvidia_levers import settings_of

        with TABLE.open(newline="") as file:
            stored = {tuple(row.values()) for row in csv.DictReader(file) if row["source"].startswith("NeMo")}
        found = {tuple(each) for name in configs.recipe_names() for each in settings_of(name)}
        assert len(found) > 200
        return sorted(f"{'+' if each in found else '-'} {each}" for each in found ^ stored)

    assert in_child(differences) == []
