"""Our recipes against NeMo's of the same name, value by value, under NeMo's own layout: what a reviewer must see
change.

python -m slipway.recipes.upstream            # rewrite recipes/upstream/*.txt
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
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


def _flatten(config: Any, prefix: str = "") -> dict[str, str]:
    import fiddle as fdl

    out: dict[str, str] = {}
    for name, value in fdl.ordered_arguments(config, include_defaults=True).items():
        key = f"{prefix}{name}"
        if isinstance(value, fdl.Buildable):
            out[key] = value.__fn_or_cls__.__name__
            out.update(_flatten(value, key + "."))
        elif isinstance(value, list) and any(isinstance(each, fdl.Buildable) for each in value):
            out.update(_flatten_list(value, key))
        elif callable(value):
            function = value.func if isinstance(value, functools.partial) else value
            out[key] = getattr(function, "__name__", str(value))
        elif value is not dataclasses.MISSING and "object at 0x" not in str(value):
            out[key] = str(value)
    return out


def _flatten_list(values: list[Any], key: str) -> dict[str, str]:
    """Callbacks by the name of their class, the second of a class as NAME#2; without arguments that are None."""
    out: dict[str, str] = {}
    names = Counter[str]()
    for value in values:
        name = value.__fn_or_cls__.__name__
        names[name] += 1
        place = f"{key}.{name}" + (f"#{names[name]}" if names[name] > 1 else "")
        out[place] = "on"
        out.update({name: text for name, text in _flatten(value, place + ".").items() if text != "None"})
    return out


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

    upstream = upstream_recipe(name)
    if upstream is None:
        return []
    theirs = _flatten(upstream)
    ours = _flatten(build(our_spec_under_upstream_layout(name, upstream)))
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
