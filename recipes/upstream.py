"""Our recipes against NeMo's of the same name, value by value, under NeMo's own layout: what a reviewer must see
change.

python -m slipway.recipes.upstream            # rewrite recipes/upstream/*.txt
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slipway import configs, planner
from slipway.configs import Spec

FOLDER = Path(__file__).parent / "upstream"
_OURS_TO_CHOOSE = (
    "log.",
    "resume.",
    "data.tokenizer",
    "model.tokenizer",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.callbacks.RunRecord.",  # where this run writes, and what was asked for
    "trainer.profiler",
)


def upstream_recipe(name: str) -> Any:
    """NeMo's own pretraining recipe, or None."""
    from nemo.collections import llm

    factory = getattr(getattr(llm, name, None), "pretrain_recipe", None)
    return factory(name="x", num_nodes=1, num_gpus_per_node=8) if factory else None


def our_spec_under_upstream_layout(name: str, upstream: Any) -> Spec:
    """Our recipe with the parallel sizes and batch of NeMo's, so that only what we chose differently is left."""
    import fiddle as fdl

    strategy = fdl.ordered_arguments(upstream.trainer.strategy, include_defaults=True)
    sizes = {
        "tp": "tensor_model_parallel_size",
        "pp": "pipeline_model_parallel_size",
        "vpp": "virtual_pipeline_model_parallel_size",
        "cp": "context_parallel_size",
        "ep": "expert_model_parallel_size",
        "etp": "expert_tensor_parallel_size",
    }
    overrides = [f"layout.{ours}={strategy[theirs] or (0 if ours == 'etp' else 1)}" for ours, theirs in sizes.items()]
    overrides += [f"layout.gbs={upstream.data.global_batch_size}", f"layout.mbs={upstream.data.micro_batch_size}"]
    return planner.complete(configs.load(name, overrides))


def difference(name: str) -> list[str]:
    """Lines ``key: upstream -> ours``; empty where NeMo has no recipe of this name."""
    from slipway.recipes.build import build
    from slipway.recipes.readback.flat import flatten

    upstream = upstream_recipe(name)
    if upstream is None:
        return []
    theirs = flatten(upstream)
    ours = flatten(build(our_spec_under_upstream_layout(name, upstream)))
    lines = []
    for key in sorted(set(theirs) | set(ours)):
        if key.startswith(_OURS_TO_CHOOSE):
            continue
        a, b = theirs.get(key, "(absent)"), ours.get(key, "(absent)")
        if a != b:
            lines.append(f"{key}: {a} -> {b}")
    return lines


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in configs.recipe_names():
        lines = difference(name)
        if lines:
            head = (
                f"# {name}: NeMo 2.7.3's recipe -> ours, under NeMo's layout. Written by python -m "
                "slipway.recipes.upstream; review every change.\n"
            )
            (FOLDER / f"{name}.txt").write_text(head + "\n".join(lines) + "\n")
        print(f"{name}: {len(lines)} differences", flush=True)


if __name__ == "__main__":
    main()
