"""Resume takes the last good checkpoint and says so; a full disk loses no earlier one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from slipway.launch.runs.read import read_run
from tests import forked


@pytest.mark.nemo
def test_a_checkpoint_is_also_written_by_the_clock(tmp_path: Path) -> None:
    from dataclasses import replace

    from slipway.configs import load
    from slipway.launch.rehearsal import ranks
    from slipway.launch.rehearsal.rehearse import import_nemo
    from slipway.launch.rehearsal.shrink import shrink, single_process

    import_nemo()
    toy = single_process(shrink(load("llama3_8b", ["layout.tp=1", "gpus=1"]).spec))
    spec = replace(
        toy,
        run=replace(
            toy.run,
            dir=str(tmp_path),
            max_steps=4,
            checkpoint_every_n_steps=1000,
            checkpoint_every_minutes=0,
            async_save=False,
            val_check_interval=0,
        ),
    )

    def train(minutes: float) -> Any:
        def work(rank: int) -> list[str]:
            import fiddle as fdl

            from slipway.recipes.build import build

            recipe = build(replace(spec, name=f"every{minutes}"), cpu=True)
            recipe.log.ckpt.every_minutes = minutes
            recipe.log.ckpt.save_optim_on_train_end = False
            fdl.build(recipe)()
            return sorted(p.name for p in (tmp_path / f"every{minutes}" / "checkpoints").iterdir())

        return ranks.run(1, work, timeout_s=200).results[0]

    assert "step=1" in train(1e-6), "saved after a step although the thousandth is far"
    assert not [n for n in train(0.0) if n in ("step=1", "step=2")]


def test_a_folder_of_unusable_checkpoints_is_not_started_over(tmp_path: Path) -> None:
    """It is refused, by ``outlook`` as a launch asks it; only interrupted saves, or run.resume=false, start over."""
    from dataclasses import replace

    from slipway.configs import Refusal, load
    from slipway.launch.runs.outlook import outlook

    spec = load("llama3_8b", ["gpus=1", "layout.tp=1"]).spec
    again = replace(spec, run=replace(spec.run, resume=False))
    folder = tmp_path / "checkpoints"
    cases = {
        "step=3/.metadata": r"step=3 is of Megatron-FSDP \(fsdp_dtensor\), which cannot be resumed",
        "step=3/weights/__0_0.distcp": r"step=3 has no index",
        "step=3.ckpt": r"step=3.ckpt is a file, not a distributed checkpoint",
    }
    for name, reason in cases.items():
        file = folder / name
        file.parent.mkdir(parents=True)
        file.touch()
        with pytest.raises(Refusal, match=rf"no checkpoint of .* can be loaded: {reason}"):
            outlook(tmp_path, spec)
        assert outlook(tmp_path, again).startswith("starts from step 0")
        (folder / "step=3-unfinished").touch()
        if "ckpt" not in name:
            assert outlook(tmp_path, spec).startswith("starts from step 0"), "its save was interrupted"
        shutil.rmtree(folder)


def _train(folder: Path, steps: int, *more: str) -> subprocess.CompletedProcess[str]:
    recipe = (
        f"llama3_tiny(dir={folder},name=a,tp=1,num_gpus_per_node=1,mbs=1,gbs=1,max_steps={steps},checkpoint_every=1)"
    )
    environment = os.environ | {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "OMP_NUM_THREADS": "1"}
    return forked.nemo("llm", "pretrain", "--factory", recipe, *more, "-y", environment=environment)


@pytest.mark.nemo
@pytest.mark.slow
def test_a_run_that_fails_keeps_why_until_it_trains_again(tmp_path: Path) -> None:
    """A learning rate that no weight survives: Megatron-Core finds the NaN in the second step's gradients."""
    failed = _train(tmp_path, 4, "optim.config.lr=1e30", "log.ckpt=null")
    assert failed.returncode not in (0, 2)
    run = read_run(tmp_path / "a")
    assert run.state == "failed"
    assert run.failure.startswith(
        "in step 1, on rank 0: NaN: the loss or a gradient is not a number (NaN or infinite) in step 1"
    ), run.failure
    assert _train(tmp_path, 2).returncode == 0
    assert read_run(tmp_path / "a").failure == ""


@pytest.mark.nemo
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_sentence_and_the_run_resumes(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(disk)], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        full = _train(disk, 8)
        assert full.returncode == 2
        assert "is on a full disk" in full.stderr.strip().splitlines()[-1]
        subprocess.run(["mount", "-o", "remount,size=400m", str(disk)], check=True)
        again = _train(disk, 4)
        assert again.returncode == 0, again.stderr[-2000:]
        assert "resuming from" in again.stdout + again.stderr
        assert "iteration 0/" not in again.stdout, "not from scratch"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
