"""A rank binds itself to the processors near its GPU, as the machine names them."""

from __future__ import annotations

import os
from pathlib import Path

from slipway.recipes.runtime.numa import bind_to, processors_near

GPU = "0000:1b:00.0"


def _machine(folder: Path, processors: str) -> Path:
    (folder / GPU).mkdir(parents=True)
    (folder / GPU / "local_cpulist").write_text(processors + "\n")
    return folder


def test_the_processors_of_a_device_are_read_from_the_machine(tmp_path: Path) -> None:
    assert processors_near(GPU, _machine(tmp_path, "0-3,8,10-11")) == {0, 1, 2, 3, 8, 10, 11}
    assert processors_near("0000:00:00.0", tmp_path) == set()


def test_a_process_runs_near_its_device_and_never_outside_what_the_job_may_use(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    one = min(allowed)
    try:
        assert bind_to(GPU, _machine(tmp_path / "other", "9000-9003")) == allowed, "none of them may be used"
        assert bind_to("0000:00:00.0", tmp_path) == allowed, "the machine does not say"
        assert bind_to(GPU, _machine(tmp_path / "near", f"{one},9000")) == {one}
        assert os.sched_getaffinity(0) == {one}
    finally:
        os.sched_setaffinity(0, allowed)
