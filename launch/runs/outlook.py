"""What a launch into a run's folder will do, said before anything is submitted: start, resume, or refuse. Never silently from scratch."""

from __future__ import annotations

import json
from pathlib import Path

from slipway.configs import Refusal, Spec
from slipway.configs.load import spec_from_record
from slipway.planner.layout import PARALLEL
from slipway.recipes.runtime.checkpoint_files import held
from slipway.recipes.runtime.run_files import RECORD


def outlook(run_dir: Path, spec: Spec) -> str:
    """One sentence on how training begins in ``run_dir``.

    Raises:
        Refusal: it holds another model, tokenizer or data; or finished checkpoints of which none can be loaded; or the run is done.
    """
    from slipway.recipes.runtime.record import check_run_dir
    from slipway.recipes.runtime.resume import nothing_whole

    check_run_dir(run_dir, spec)
    folder = run_dir / "checkpoints"
    found = held(folder)
    passed = "".join(f"; passing over {name}, which {wrong}" for name, wrong in found.passed_over.items())
    if found.newest is None:
        if found.lost:
            raise nothing_whole(folder, found)
        return f"starts from step 0: {run_dir} holds no checkpoint{passed}"
    if not spec.run.resume:
        raise Refusal(
            f"run.resume=false would train over the checkpoints of {run_dir}, which is at step {found.step}",
            "Give another name= or run.dir=, or leave run.resume out.",
        )
    if found.step + 1 >= spec.run.max_steps:
        raise Refusal(
            f"{run_dir} has done its {found.step + 1} steps and run.max_steps is {spec.run.max_steps}",
            "To go on, give a larger run.max_steps and run.extend_schedule=true.",
        )
    return f"will resume after step {found.step} of {spec.run.max_steps}, from {found.newest.name}; {_layout_change(run_dir, spec)}{passed}"


def _layout_change(run_dir: Path, spec: Spec) -> str:
    path = run_dir / RECORD
    if not path.is_file():
        return f"{run_dir} does not say of which layout"
    then = spec_from_record(json.loads(path.read_text())["spec"])
    pairs = [(k, getattr(then.layout, k), getattr(spec.layout, k)) for k in (*PARALLEL, "fsdp")] + [
        ("ranks", then.gpus, spec.gpus)
    ]
    changed = [f"{name} {getattr(a, 'value', a)} -> {getattr(b, 'value', b)}" for name, a, b in pairs if a != b]
    return f"same {spec.model.name}, " + (f"resharded ({', '.join(changed)})" if changed else "same layout")
