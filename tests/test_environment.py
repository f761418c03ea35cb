"""What is installed is the supported set, and the house is built as it says."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _pins() -> dict[str, str]:
    lines = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    return dict(re.split("==", line.split(";")[0].strip().lower().replace("_", "-")) for line in lines if "==" in line)


def test_the_lock_pins_everything_and_names_no_address() -> None:
    text = (ROOT / "requirements" / "lock.txt").read_text()
    assert "://" not in text and "--" not in text
    assert all("==" in line for line in text.splitlines() if line and not line.startswith("#"))


@pytest.mark.parametrize(
    "package",
    [
        "torch",
        "nemo-toolkit",
        "megatron-core",
        "nemo-run",
        "lightning",
        "transformers",
        "hydra-core",
        "omegaconf",
        "numpy",
    ],
)
def test_what_is_installed_is_what_is_locked(package: str) -> None:
    assert version(package).split("+")[0] == _pins()[package]


def test_the_supported_set_is_the_lock_and_another_pair_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    from slipway.configs import Refusal
    from slipway.recipes.runtime import source

    supported = yaml.safe_load((ROOT / "configs" / "supported.yaml").read_text())["packages"]
    assert {k.replace("_", "-"): v for k, v in supported.items()} == {
        k: _pins()[k] for k in (n.replace("_", "-") for n in supported)
    }
    source.require_supported_pair()
    monkeypatch.setattr(source, "version", lambda name: "0.16.1" if name == "megatron-core" else "2.7.3")
    with pytest.raises(Refusal, match="megatron-core 0.16.1 does not train with nemo_toolkit 2.7.3: 0.15.3 does"):
        source.require_supported_pair()


def test_the_readmes_table_is_the_lock() -> None:
    table = (ROOT / "README.md").read_text()
    for package in ("torch", "nemo-toolkit", "megatron-core", "nemo-run"):
        assert f"| {package.replace('nemo-toolkit', 'nemo_toolkit')} | {_pins()[package]}" in table, package
    assert f"| Python | {sys.version_info.major}.{sys.version_info.minor}" in table
