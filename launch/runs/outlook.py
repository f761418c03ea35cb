"""What a launch into a run's folder will do, found before anything is submitted: start, resume, or be refused."""

from __future__ import annotations

from pathlib import Path

from slipway.configs import Refusal, Spec
from slipway.configs.load import recorded
from slipway.launch.runs.read import CHECKPOINTS, is_run
from slipway.planner.layout import PARALLEL
from slipway.recipes.runtime.checkpoint_files import held, nothing_whole
from slipway.recipes.runtime.data_fingerprint import check_same_data
from slipway.recipes.runtime.run_dir import check_run_dir
from slipway.recipes.runtime.run_files import RECORD

RESHARDED_BY = (*PARALLEL, "fsdp")  # a checkpoint is resharded where one of these differs


def outlook(run_dir: Path, spec: Spec) -> str:
    """How training will begin in ``run_dir``, in one sentence.

    Raises:
        Refusal: the folder holds a run of another model, tokenizer or data; or checkpoints of which none can be
            loaded, unless only interrupted saves; or the run has done all its steps.
    """
    check_run_dir(run_dir, spec)
    check_same_data(run_dir, spec)
    folder = run_dir / CHECKPOINTS
    found = held(folder)
    skipped = "".join(f"; passing over {name}, which {wrong}" for name, wrong in found.passed_over.items())
    if found.newest is None:
        if found.lost and spec.run.resume:
            raise nothing_whole(folder, found)
        weights = f" with the weights of {spec.run.base}" if spec.run.base else ""
        return f"starts from step 0{weights}: {run_dir} holds no checkpoint{skipped}"
    if not spec.run.resume:
        raise Refusal(
            f"run.resume=false would train over the checkpoints of {run_dir}, which is at step {found.step}",
            "Give another name= or run.dir=, or leave run.resume out.",
        )
    if found.step + 1 >= spec.run.max_steps:
        raise Refusal(
            f"{run_dir} has done its {found.step + 1} steps and run.max_steps is {spec.run.max_steps}",
            "To train further, give a larger run.max_steps and run.extend_schedule=true.",
        )
    from_ = f"from {found.newest.name}; {_layout_change(run_dir, spec)}"
    return f"will resume after step {found.step} of {spec.run.max_steps}, {from_}{skipped}"


def _layout_change(run_dir: Path, spec: Spec) -> str:
    """Whether the run's checkpoints are resharded, and how."""
    path = run_dir / RECORD
    if not path.is_file():
        return f"{run_dir} does not record its layout"
    then = recorded(path)[0]
    pairs = [(name, getattr(then.layout, name), getattr(spec.layout, name)) for name in RESHARDED_BY]
    pairs.append(("ranks", then.gpus, spec.gpus))
    changed = [
        f"{name} {getattr(old, 'value', old)} -> {getattr(new, 'value', new)}" for name, old, new in pairs if old != new
    ]
    return f"same {spec.model.name}, " + (f"resharded ({', '.join(changed)})" if changed else "same layout")


def outlook_of_existing(spec: Spec) -> tuple[str, bool] | None:
    """What a launch of ``spec`` would do, and whether it would train, where its folder holds a run; else None."""
    run_dir = Path(spec.run.dir) / spec.name
    if not is_run(run_dir):
        return None
    try:
        return outlook(run_dir, spec), True
    except Refusal as refusal:
        return refusal.sentence(), False
