"""What is installed is the supported set, and the house is built as it says."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _pins() -> dict[str, str]:
    text = (ROOT / "requirements" / "lock.txt").read_text()
    return {name.lower().replace("_", "-"): pin for name, pin in re.findall(r"^([\w.-]+)==(\S+)", text, re.M)}


@pytest.mark.parametrize("name", ["lock.txt", "cuda.txt", "torch-cpu.txt"])
def test_every_requirement_is_pinned_with_hashes_and_no_address(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    for requirement in text.replace("\\\n", " ").splitlines():
        pin, *hashes = requirement.split()
        assert re.fullmatch(r"[\w.-]+==[\w.+!]+", pin), requirement
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in hashes), pin


def test_the_lock_accepts_both_builds_of_torch() -> None:
    lock, cpu = ((ROOT / "requirements" / name).read_text() for name in ("lock.txt", "torch-cpu.txt"))
    torch = lock[lock.index("\ntorch==") : lock.index("\ntorchao==")]
    assert cpu.split("--hash=")[1].strip() in torch and torch.count("--hash=") > 1
    assert cpu.startswith(f"torch=={_pins()['torch']}+cpu ")


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
