"""Files that somebody else wrote cannot run commands: recipes name only what recipes are made of, and pickles are read
without being run.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slipway.configs import Refusal
from slipway.launch.export import load
from slipway.launch.runs.checkpoints import kept
from tests.launch.test_checkpoint import write_checkpoint


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "torch.hub.load",
        "torch.load",
        "slipway.launch.executors.submit.subprocess.run",
        "slipway.recipes.runtime.source.subprocess.run",
        "slipway.recipes.runtime.source._git",
        "evil.code",
        "megatron.core.parallel_state.os.system",
    ],
)
def test_a_recipe_that_names_a_command_is_refused_and_not_run(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"_target_: {target}\n_partial_: true\ncommand: touch {ran}\n")
    with pytest.raises(Refusal, match=f"names _target_: {target}, which no recipe is made of, and it was not called"):
        load(recipe)
    assert not ran.exists()


class Command:
    """What pickle calls when it is loaded."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.ran}",)


def test_a_checkpoint_is_listed_without_running_its_index(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    weights = write_checkpoint(tmp_path, 1, sums=False)
    (weights / ".metadata").write_bytes(pickle.dumps(SimpleNamespace(storage_data={}, more=Command(ran))))
    assert "names posix.system, which no checkpoint needs" in kept(tmp_path)[0].wrong
    assert not ran.exists()
