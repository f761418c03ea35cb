"""compare: its statistics find a difference that exists, and none that does not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slipway.configs import Refusal, Spec
from slipway.launch.runs.compare import (
    Aligned,
    Side,
    align,
    compare,
    differences,
    loss_difference,
    read_side,
    write_comparison,
)
from slipway.launch.runs.read import read_run
from tests.launch.written_runs import curve, tiny, write_run


@pytest.fixture
def spec() -> Spec:
    return tiny()


def _one(folder: Path, losses: np.ndarray, step_s: float, spec: Spec) -> Side:
    return Side(folder.name, [read_run(write_run(folder, losses, step_s, spec))])


def test_it_finds_a_difference_only_where_there_is_one(tmp_path: Path, spec: Spec) -> None:
    a = _one(tmp_path / "bf16", curve(0), 0.50, spec)
    b = _one(tmp_path / "fp8", curve(1), 0.40, spec)
    c = _one(tmp_path / "worse", curve(2, shift=0.02), 0.40, spec)
    same, worse = compare(a, b), compare(a, c)
    assert same.speed_up == pytest.approx(1.25)
    assert "no significant difference" in same.sentence
    assert "significantly higher for this seed; another seed may change the loss as much" in worse.sentence
    assert worse.loss_difference == pytest.approx(0.02, abs=0.003)
    result, written = write_comparison(a, b, tmp_path / "out")
    assert {p.suffix for p in written} == {".png", ".html", ".json"}
    assert result.sentence.startswith("fp8 is 1.25x as fast as bf16")
    page = written[1].read_text()
    assert page.count("<svg") == 1 and '"title":"Step time (s)"' in page and "{picture}" not in page
    assert not re.findall(r"(?:src|href)=.?https?://", page), "self-contained"


def _aligned(a: np.ndarray, b: np.ndarray) -> Aligned:
    return Aligned("step", np.arange(len(a)), a, b)


def test_the_interval_covers_the_true_difference_as_often_as_it_should() -> None:
    one = [loss_difference([_aligned(curve(2 * i), curve(2 * i + 1))]) for i in range(200)]
    assert 0.86 <= sum(abs(d) <= n for d, n in one) / 200 <= 1.0
    rng = np.random.default_rng(0)

    def seeds(count: int) -> list[Aligned]:
        """Pairs that each have a random shift of their own, as seeds have: blocks of one pair cannot measure it."""
        return [_aligned(curve(0), curve(0) * (1 + rng.normal(0, 0.01))) for _ in range(count)]

    alone = [loss_difference(seeds(1)) for _ in range(200)]
    assert sum(abs(d) <= n for d, n in alone) / 200 < 0.5, "one pair cannot measure the variation between seeds"
    for count in (2, 3, 5):
        several = [loss_difference(seeds(count)) for _ in range(300)]
        assert 0.92 <= sum(abs(d) <= n for d, n in several) / 300 <= 0.98


def test_several_seeds_are_compared_pair_by_pair(tmp_path: Path, spec: Spec) -> None:
    for seed in (1, 2, 3):
        at = replace(spec, run=replace(spec.run, seed=seed))
        write_run(tmp_path / f"runs/bf16-{seed}", curve(seed), 0.50, at)
        write_run(tmp_path / f"runs/fp8-{seed}", curve(seed, shift=0.001 * seed), 0.40, at)
    a, b = (read_side(f"{tmp_path}/runs/{name}-*") for name in ("bf16", "fp8"))
    assert (a.name, b.name, len(b.runs)) == ("bf16", "fp8", 3)
    result, _ = write_comparison(a, b, tmp_path / "out")
    assert result.pairs == 3
    assert result.loss_difference == pytest.approx(0.002, abs=1e-5)
    assert result.loss_noise == pytest.approx(4.30 * 0.001 / 3**0.5, rel=0.01)
    assert (
        result.sentence
        == "fp8 is 1.25x as fast as bf16; its loss differs by +0.20% +- 0.25% over 3 seeds: no significant difference."
    )
    with pytest.raises(
        Refusal, match="the seeds must be the same on both sides, each once: bf16 has 1, 2, 3 and fp8 has 1, 2"
    ):
        compare(a, Side("fp8", b.runs[:2]))
    with pytest.raises(Refusal, match="holds no run"):
        read_side(f"{tmp_path}/runs/fp4-*")


def test_runs_of_different_batch_are_aligned_by_tokens(tmp_path: Path, spec: Spec) -> None:
    double = replace(spec, layout=replace(spec.layout, gbs=2 * spec.layout.gbs))
    a = _one(tmp_path / "a", curve(0), 0.5, spec)
    b = _one(tmp_path / "b", curve(1)[::2], 0.9, double)
    assert compare(a, b).aligned_by == "tokens"


def test_a_run_with_a_ramp_is_aligned_by_the_tokens_of_its_steps(tmp_path: Path, spec: Spec) -> None:
    """The ramp takes a step of 8 sequences for the first 200 steps, so its 400 steps are 300 of the other's."""
    ramped = replace(spec, optim=replace(spec.optim, batch_ramp=["8 until 200 steps"]))
    assert spec.layout.gbs == 16
    losses = 2 + np.arange(400) / 400.0  # by tokens: a straight line of the other run
    of_ramp = np.concatenate((losses[:100].repeat(2), losses[100:300]))
    of_ramp[:200:2] -= 0.5 / 400  # half a step of 16 sequences
    a, b = _one(tmp_path / "a", losses, 0.5, spec), _one(tmp_path / "b", of_ramp, 0.5, ramped)
    aligned = align(a.runs[0], b.runs[0])
    assert aligned.by == "tokens" and len(aligned.x) == 300
    assert aligned.b == pytest.approx(aligned.a, abs=1e-6)


def test_a_loss_that_is_not_finite_is_not_compared(tmp_path: Path, spec: Spec) -> None:
    losses = curve(0, 40)
    losses[30:] = np.nan
    with pytest.raises(Refusal, match="the loss of broken is not finite"):
        compare(_one(tmp_path / "whole", curve(1, 40), 0.5, spec), _one(tmp_path / "broken", losses, 0.5, spec))


def test_runs_that_differ_in_nothing_but_noise_are_as_fast(tmp_path: Path, spec: Spec) -> None:
    times = np.random.default_rng(0).normal(0.5, 0.1, (2, 400)).clip(0.1)
    a, b = (read_side(str(write_run(tmp_path / str(i), curve(i), of, spec))) for i, of in enumerate(times))
    result, _ = write_comparison(a, b, tmp_path / "out")
    assert result.speed_up and result.speed_noise and abs(result.speed_up - 1) < result.speed_noise
    assert "which is no significant difference" in result.sentence


def test_what_differs_in_the_configurations_is_shown_and_names_tell_runs_apart(tmp_path: Path, spec: Spec) -> None:
    other = replace(spec, optim=replace(spec.optim, lr=1e-5))
    a = read_side(str(write_run(tmp_path / "bf16/run", curve(0), 0.5, spec)))
    b = read_side(str(write_run(tmp_path / "fp8/run", curve(1), 0.4, other)))
    assert differences([*a.runs, *b.runs]) == [("optim.lr", [str(spec.optim.lr), "1e-05"])]
    page = write_comparison(a, b, tmp_path / "out")[1][1].read_text()
    assert "<td>optim.lr</td>" in page and ">bf16/run<" in page and ">fp8/run<" in page
