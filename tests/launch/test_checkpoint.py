"""``slipway checkpoint``: the whole is called whole, what differs from its sum is named, pruning spares the rest."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from slipway.launch.cli.commands.checkpoint import checkpoint
from slipway.recipes.runtime.checksums import SUMS, shares, write_sums, wrong_files
from slipway.recipes.runtime.data_manifest import sha256_of


def write_checkpoint(run: Path, step: int, sums: bool = True) -> Path:
    """A checkpoint as NeMo names it: two shards, and the index that says how long they are."""
    weights = run / "checkpoints" / f"step={step}" / "weights"
    weights.mkdir(parents=True)
    index = {}
    for rank in range(2):
        (weights / f"__{rank}_0.distcp").write_bytes(bytes([step, rank]) * 500)
        index[rank] = SimpleNamespace(relative_path=f"__{rank}_0.distcp", offset=0, length=1000)
    (weights / ".metadata").write_bytes(pickle.dumps(SimpleNamespace(storage_data=index)))
    if sums:
        write_sums(weights, {each.name: sha256_of(each) for each in weights.iterdir()})
    return weights


def slipway(*words: str) -> Result:
    return CliRunner().invoke(checkpoint, [*words, "--json"], standalone_mode=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (1, 3, 5):
        write_checkpoint(tmp_path, step)
    return tmp_path


def test_a_flipped_bit_is_found_and_sha256sum_agrees(run: Path) -> None:
    assert [each["files_wrong"] for each in json.loads(slipway("verify", str(run)).stdout)] == [{}, {}, {}]
    weights = run / "checkpoints/step=5/weights"
    content = bytearray((weights / "__1_0.distcp").read_bytes())
    content[700] ^= 1
    (weights / "__1_0.distcp").write_bytes(content)
    done = slipway("verify", str(run))
    found = json.loads(done.stdout)
    assert found[0]["files_wrong"] == {"__1_0.distcp": "differs from its SHA-256"}
    assert [each["whole"] for each in found] == [False, True, True]
    assert "1 damaged of 3 checkpoints. The newest whole one is step=3" in done.exception.sentence()  # type: ignore
    other = subprocess.run(["sha256sum", "-c", SUMS], cwd=weights, capture_output=True, text=True, check=False)
    assert "__1_0.distcp: FAILED" in other.stdout
    assert "__0_0.distcp: OK" in other.stdout


def test_what_is_lost_is_found_and_what_has_no_sums_is_unchecked(run: Path) -> None:
    weights = run / "checkpoints/step=5/weights"
    (weights / "__0_0.distcp").unlink()
    assert wrong_files(weights) == {"__0_0.distcp": "cannot be read: No such file or directory"}
    write_checkpoint(run, 7, sums=False)
    newest, broken, *_ = json.loads(slipway("list", str(run)).stdout)
    assert (newest["name"], newest["checksums"], newest["whole"]) == ("step=7", 0, True)
    assert broken["wrong"] == "lacks __0_0.distcp"


def test_every_file_is_read_by_one_rank(run: Path) -> None:
    dealt = shares(run / "checkpoints/step=5/weights", 2)
    assert sorted(name for part in dealt for name in part) == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    assert all(dealt), "no rank reads everything"


def test_pruning_keeps_the_newest_and_says_first(run: Path) -> None:
    (run / "checkpoints/step=5/weights/__0_0.distcp").unlink()
    said = json.loads(slipway("prune", str(run)).stdout)
    assert (said["removed"], said["done"]) == (["step=1"], False)
    assert (run / "checkpoints/step=1").is_dir(), "nothing is removed without --yes"
    assert json.loads(slipway("prune", str(run), "--damaged", "--yes").stdout)["removed"] == ["step=1", "step=5"]
    assert [each.name for each in (run / "checkpoints").iterdir()] == ["step=3"]


def test_a_run_that_trains_is_not_pruned(run: Path) -> None:
    holds = (
        "import sys, pathlib, time; from slipway.recipes.runtime.run_lock import acquire;"
        "acquire(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holds, str(run)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        done = slipway("prune", str(run), "--yes")
        other.kill()
    assert f"is in use: process {other.pid} on " in done.exception.sentence()  # type: ignore[union-attr]
    assert json.loads(slipway("prune", str(run), "--yes").stdout)["removed"] == ["step=3", "step=1"]
