"""Resumed training equals uninterrupted training: ranks are killed at random, checkpoints damaged, layouts changed.

In fp32 on CPU the arithmetic is deterministic, so an unchanged layout must give the same bits.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slipway.configs import Refusal, Spec, load
from slipway.configs.schema import DataKind
from slipway.launch.rehearsal import ranks
from slipway.launch.rehearsal.rehearse import import_nemo, seed_after_configure
from slipway.launch.rehearsal.shrink import shrink, single_process

pytestmark = [pytest.mark.nemo, pytest.mark.slow]
RELATIVE_TOLERANCE = 1e-5


def _toy(folder: Path, *overrides: str, steps: int, every: int = 2, asynchronous: bool = False) -> Spec:
    toy = shrink(load("llama3_8b", list(overrides)).spec)
    run = replace(
        toy.run,
        dir=str(folder),
        max_steps=steps,
        checkpoint_every_n_steps=every,
        checkpoint_every_minutes=0,
        keep_checkpoints=3,
        async_save=asynchronous,
        val_check_interval=0,
    )
    return replace(toy, name="a", run=run, optim=replace(toy.optim, decay_steps=60))


def _kill_in(seconds: float) -> None:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), 9))
    timer.daemon = True
    timer.start()


def _work(spec: Spec, losses: Path, arm: Callable[[Any], None] | None = None) -> Callable[[int], str]:
    """One rank's training, which returns a hash of its weights; the last rank appends each step's loss to ``losses``.

    ``arm`` gets the checkpoint class before training and may set a timer that kills the process.
    """

    def work(rank: int) -> str:
        import fiddle as fdl
        import lightning.pytorch as pl

        from slipway.recipes.build import build
        from slipway.recipes.runtime.checkpoint import Checkpoint

        digest = hashlib.sha256()

        class Watch(pl.Callback):
            def on_train_start(self, trainer: Any, module: Any) -> None:
                if arm:
                    arm(Checkpoint)

            def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
                if rank == spec.gpus - 1:
                    with losses.open("a") as f:
                        f.write(
                            f"{trainer.global_step} {float(trainer.callback_metrics['reduced_train_loss']).hex()}\n"
                        )

        seed_after_configure(spec.run.seed)
        recipe = build(spec, cpu=True)
        recipe.trainer.enable_progress_bar = False
        built = fdl.build(recipe)
        built.keywords["trainer"].callbacks.append(Watch())
        built()
        for _, weight in sorted(built.keywords["model"].named_parameters(), key=lambda item: item[0]):
            digest.update(weight.detach().numpy().tobytes())
        return digest.hexdigest()

    return work


def _train(spec: Spec, arm: Callable[[Any], None] | None = None) -> tuple[list[str], dict[int, str], str]:
    """Hashes of the ranks' weights (none if killed), the loss of each step as last trained, and rank 0's log."""
    import_nemo()
    folder = Path(spec.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    logs = folder / "logs"
    try:
        hashes = [
            str(r) for r in ranks.run(spec.gpus, _work(spec, folder / "losses", arm), timeout_s=200, logs=logs).results
        ]
    except ranks.RankFailure as failure:
        if arm is None:
            pytest.fail(failure.log[-3000:])
        hashes = []
    written = (folder / "losses").read_text().splitlines() if (folder / "losses").exists() else []
    held = {int(step): loss for step, loss in (line.split() for line in written)}
    return hashes, held, "".join(p.read_text(errors="replace") for p in folder.rglob("nemo_log_globalrank-0_*.txt"))


@pytest.mark.parametrize(("asynchronous", "kills"), [(True, 20), (False, 6)])
def test_killed_at_random_it_ends_with_the_same_bits(tmp_path: Path, asynchronous: bool, kills: int) -> None:
    """Every second kill comes while a checkpoint is being written."""
    steps = 4 * kills

    def toy(name: str) -> Spec:
        spec = _toy(tmp_path / name, "layout.tp=2", "gpus=2", steps=steps, asynchronous=asynchronous)
        return replace(spec, layout=replace(spec.layout, gbs=spec.layout.mbs))  # one micro-batch: steps are short

    whole, losses, _ = _train(toy("whole"))
    dice = random.Random(20261122)
    spec = toy("killed")
    killed = 0
    hashes: list[str] = []
    while killed < kills and not hashes:
        moment, save, delay = dice.uniform(0.2, 2.5), dice.randint(1, 3), dice.uniform(0.0, 0.6)

        def any_moment(_: Any, moment: float = moment) -> None:
            _kill_in(moment)

        def within_a_save(kind: Any, save: int = save, delay: float = delay) -> None:
            upstream, saves = kind._save_checkpoint, []

            def save_and_die(self: Any, *args: Any) -> Any:
                saves.append(1)
                if len(saves) == save:
                    _kill_in(delay)
                return upstream(self, *args)

            kind._save_checkpoint = save_and_die

        hashes, again, log = _train(spec, within_a_save if killed % 2 else any_moment)
        killed += not hashes
    if not hashes:
        hashes, again, log = _train(spec)
    resumed = log.count("resuming from")
    print(f"killed {killed} times, resumed {resumed} times")
    assert killed >= kills // 2, f"only {killed} of {kills} kills came before the end"
    assert resumed >= killed // 2
    assert again == losses, "every step's loss, bit for bit"
    assert hashes == whole, "the weights, bit for bit"


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (("layout.tp=2", "gpus=2"), ("layout.pp=2", "gpus=2")),
        (("layout.tp=1", "gpus=2"), ("layout.tp=2", "gpus=2")),
        (("layout.tp=2", "layout.pp=2", "gpus=4"), ("layout.tp=1", "gpus=1")),
        (("layout.tp=2", "layout.pp=2", "gpus=4", "model.mtp_num_layers=1"), ("layout.tp=1", "gpus=1")),
        (("layout.tp=1", "layout.pp=2", "gpus=2", "layout.pipeline_layout=Et*15|t*17L"), ("layout.tp=2", "gpus=2")),
    ],
    ids=["tp2-to-pp2", "dp2-to-tp2", "tp2pp2-to-one", "multi-token-prediction", "written-pipeline-to-tp2"],
)
def test_another_layout_continues_the_same_training(
    tmp_path: Path, first: tuple[str, ...], then: tuple[str, ...]
) -> None:
    start = _toy(tmp_path / "a", *first, steps=4)
    whole = replace(single_process(start), run=replace(start.run, dir=str(tmp_path / "whole"), max_steps=8))
    _, expected, _ = _train(whole)
    _train(start)
    other = _toy(tmp_path / "a", *then, steps=8)
    other = replace(other, model=start.model, layout=replace(other.layout, gbs=start.layout.gbs, mbs=start.layout.mbs))
    _, losses, log = _train(other)
    assert "resuming from" in log
    assert sorted(losses) == list(range(1, 9))
    worst = max(abs(float.fromhex(losses[s]) / float.fromhex(expected[s]) - 1) for s in losses)
    assert worst <= RELATIVE_TOLERANCE, worst


def test_copies_of_the_optimizer_resume_with_the_same_bits_and_without_copies(tmp_path: Path) -> None:
    """Four data-parallel ranks that share the states in two pairs."""
    start = replace(_toy(tmp_path / "a", "layout.tp=1", "gpus=2", "levers.optimizer_instances=2", steps=4), gpus=4)
    assert start.levers.optimizer_instances == 2
    longer = replace(start.run, max_steps=8)
    whole, expected, _ = _train(replace(start, run=replace(longer, dir=str(tmp_path / "whole"))))
    _train(start)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    weights, losses, log = _train(replace(start, run=longer))
    assert "resuming from" in log
    assert (weights, losses) == (whole, expected)
    plain = replace(start.levers, optimizer_instances=1)
    _, losses, log = _train(replace(start, levers=plain, run=replace(longer, dir=str(tmp_path / "b"))))
    assert "resuming from" in log
    assert all(abs(float.fromhex(losses[s]) / float.fromhex(expected[s]) - 1) <= RELATIVE_TOLERANCE for s in expected)


def test_a_run_starts_from_the_weights_of_another_in_any_layout(tmp_path: Path) -> None:
    from slipway.launch.runs.outlook import outlook
    from slipway.recipes.runtime.base import checked_base

    first = _toy(tmp_path / "a", "layout.tp=2", "gpus=2", steps=4)
    weights, _, _ = _train(first)
    still = replace(first.optim, lr=1e-30, min_lr=1e-30, weight_decay=0.0)
    base = str(tmp_path / "a" / "a")
    run = replace(first.run, dir=str(tmp_path / "b"), base=base, max_steps=2)
    same = replace(first, name="b", optim=still, run=run)
    assert "starts from step 0 with the weights of" in outlook(tmp_path / "b" / "b", same)
    after, losses, log = _train(same)
    assert after == weights, "two steps with a rate of nothing change no weight"
    assert f"starting from the weights of {base}" in log
    other = _toy(tmp_path / "c", "layout.pp=2", "gpus=2", steps=2)
    batch = replace(other.layout, gbs=first.layout.gbs, mbs=first.layout.mbs)
    other = replace(other, model=first.model, layout=batch, optim=still, run=replace(other.run, base=base))
    _, resharded, _ = _train(other)
    assert losses.keys() == resharded.keys() == {1, 2}
    assert all(abs(float.fromhex(resharded[s]) / float.fromhex(losses[s]) - 1) <= RELATIVE_TOLERANCE for s in losses)
    with pytest.raises(Refusal, match="has weights of llama3_8b with num_layers="):
        checked_base(Path(base), replace(first.model, num_layers=first.model.num_layers + 1))
    with pytest.raises(Refusal, match="has no checkpoint to start from: it holds no checkpoint"):
        checked_base(tmp_path, first.model)


def test_damaged_checkpoints_are_skipped_with_a_warning(tmp_path: Path) -> None:
    from slipway.launch.runs.outlook import outlook
    from slipway.recipes.build import run_dir

    spec = _toy(tmp_path, "layout.tp=2", "gpus=2", steps=6)
    whole, losses, _ = _train(spec)
    folder = run_dir(spec) / "checkpoints"
    assert sorted(d.name for d in folder.iterdir()) == ["step=1", "step=3", "step=5"], "one a save, not two"
    newest = next((folder / "step=5/weights").glob("__1_*.distcp"))
    newest.write_bytes(newest.read_bytes()[:-100])
    next((folder / "step=3/weights").glob("__0_*.distcp")).unlink()
    said = outlook(run_dir(spec), spec)
    assert said.startswith("will resume after step 1 of 6, from step=1; same llama3_8b, same layout"), said
    assert "step=5, which has __1_" in said
    assert "cut short" in said
    assert "step=3, which lacks __0_" in said
    again, resumed, log = _train(spec)
    assert "resuming from" in log
    assert "passing over checkpoint step=5: it has __1_" in log
    assert (again, resumed) == (whole, losses)

    for checkpoint in folder.iterdir():
        next((checkpoint / "weights").glob("__0_*.distcp")).unlink()
    with pytest.raises(Refusal, match=r"no checkpoint of .* can be loaded: step=5 lacks __0_"):
        outlook(run_dir(spec), spec)
    with pytest.raises(pytest.fail.Exception):
        _train(spec)
    shutil.rmtree(folder)
    assert outlook(run_dir(spec), spec).startswith("starts from step 0")


def test_a_launch_says_what_it_will_do_or_is_refused(tmp_path: Path) -> None:
    from slipway.launch.runs.outlook import outlook
    from slipway.recipes.build import run_dir

    spec = _toy(tmp_path, "layout.tp=2", "gpus=2", steps=2)
    _train(spec)
    longer = replace(spec, run=replace(spec.run, max_steps=4))
    folder = run_dir(spec)
    assert outlook(folder, longer).endswith("same llama3_8b, same layout")
    split = replace(longer, layout=replace(longer.layout, tp=1, pp=2))
    assert "resharded (tp 2 -> 1, pp 1 -> 2)" in outlook(folder, split)
    cases = {
        "has done its 2 steps and run.max_steps is 2": spec,
        "run.resume=false would train over the checkpoints": replace(longer, run=replace(longer.run, resume=False)),
        "already holds a run with model = a llama3_8b of other sizes": replace(
            longer, model=replace(longer.model, num_layers=8)
        ),
        "already holds a run with data.tokenizer": replace(longer, data=replace(longer.data, tokenizer="other")),
        "already holds a run with data.kind = mock": replace(
            longer, data=replace(longer.data, kind=DataKind.indexed, paths=["/x"])
        ),
    }
    for expected, other in cases.items():
        with pytest.raises(Refusal, match=expected):
            outlook(folder, other)
