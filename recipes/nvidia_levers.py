"""The levers of NVIDIA's own performance recipes, as data: configs/levers/nvidia.csv.

NeMo 2.7.3 installs the scripts with which NVIDIA measures its published speeds (scripts/performance). They are run
here up to the recipe that they would train, for each GPU and precision, and its levers are read. Settings of
Megatron-Bridge, which no package of ours holds, come from a JSON file of its recipes' constants by release.

python -m slipway.recipes.nvidia_levers [--presets megatron_bridge_presets.json]     # rewrites the table
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from slipway import configs
from slipway.configs.levers import TABLE
from slipway.configs.overrides import text_of
from slipway.recipes.readback.parts import Parts, kind_of, of_recipe, value

GPUS = ("h100", "b200", "gb200")  # that the scripts know
_FP8 = {"ds": "fp8_delayed", "cs": "fp8_current", "mxfp8": "mxfp8", "ss": "fp8_blockwise"}  # their words -> ours
_SIZES = {"num_nodes": 64, "mbs": 1, "gbs": 1024, "tp_size": 2, "pp_size": 4, "cp_size": 1, "vp_size": 2, "ep_size": 2}
"""Sizes with which every lever has something to act on: the scripts turn some off with a size of 1."""
_MOMENTS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
BRIDGE = "v0.5.1"
_BRIDGE_PRECISIONS = {
    "BF16": "bf16",
    "FP8_CS": "fp8_current",
    "FP8_MX": "mxfp8",
    "FP8_SC": "fp8_blockwise",
    "NVFP4": "nvfp4",
}


class Setting(NamedTuple):
    """One lever of one recipe of NVIDIA's; ``gpu`` and ``precision`` are ``*`` where it is the same for all."""

    recipe: str
    gpu: str
    precision: str
    key: str
    value: str
    source: str


def _levers(parts: Parts) -> dict[str, Any]:
    """The levers of a recipe of NeMo's, under our keys."""
    callbacks = {kind_of(each).__name__: each for each in parts.callbacks}
    found = {
        "precision.grad_reduce_in_fp32": bool(value(parts.plugin, "grad_reduce_in_fp32")),
        "precision.first_last_layers_bf16": bool(value(parts.plugin, "first_last_layers_bf16")),
        "optim.precision_aware": bool(value(parts.optim, "use_precision_aware_optimizer")),
        "optim.moments": _MOMENTS[value(parts.optim, "exp_avg_dtype", torch.float32)],
        "levers.check_for_nan": bool(value(parts.ddp, "check_for_nan_in_grad")),
        "levers.sharp": bool(value(parts.strategy, "use_sharp")),
        "levers.optimizer_instances": value(parts.strategy, "num_distributed_optimizer_instances", 1),
    }
    if collector := callbacks.get("GarbageCollectionCallback"):
        found["levers.gc_interval"] = value(collector, "gc_interval_train")
    if overlap := callbacks.get("MegatronCommOverlapCallback"):
        deferred = bool(value(overlap, "defer_embedding_wgrad_compute"))
        found |= {
            "layout.tp_comm_overlap": bool(value(overlap, "tp_comm_overlap")),
            "levers.wgrad_deferral_limit": value(overlap, "wgrad_deferral_limit") if deferred else 0,
            "levers.overlap_param_gather_with_optimizer_step": bool(
                value(overlap, "overlap_param_gather_with_optimizer_step")
            ),
            "levers.align_param_gather": "null",  # with a virtual pipeline, as the callback by itself
            "levers.bucket_size": value(overlap, "bucket_size") or 128 * 1024 * 1024,  # likewise
        }
    if value(parts.model, "num_moe_experts"):
        drops = "MegatronTokenDropCallback" in callbacks
        found["layout.moe_expert_capacity_factor"] = 1.0 if drops else 0.0
        flex = "DeepEPCallback" in callbacks or value(parts.model, "moe_token_dispatcher_type") == "flex"
        found["layout.dispatcher"] = "flex" if flex and not drops else "alltoall"
        found["levers.moe_router_fusion"] = bool(value(parts.model, "moe_router_fusion"))
    return found


_AROUND_A_RANK = {  # nemo.lightning.run.plugins.PerfEnvPlugin and scripts/performance/executors.py
    "levers.layernorm_sm_margin": 16,
    "levers.nvls": False,
    "levers.p2p_chunk_bytes": 2 * 1024 * 1024,
    "levers.numa_binding": True,
}


def _of_script(name: str) -> Iterator[Setting]:
    """The levers of NVIDIA's script for a model, on each GPU and in each precision that it takes."""
    script = importlib.import_module(f"scripts.performance.llm.pretrain_{name}")
    source = f"NeMo 2.7.3 scripts/performance/llm/pretrain_{name}.py"
    for gpu in GPUS:
        for compute, scaling in (("bf16", None), *(("fp8", word) for word in _FP8)):
            precision = _FP8[scaling] if scaling else "bf16"
            arguments = SimpleNamespace(
                **dict.fromkeys(_arguments()), gpu=gpu, compute_dtype=compute, fp8_recipe=scaling
            )
            arguments.gpus_per_node, arguments.max_steps, arguments.use_hf_tokenizer = 8, 100, False
            taken = inspect.signature(script.override_recipe_configs).parameters
            sizes: dict[str, Any] = {parameter: _SIZES.get(parameter, 0) for parameter in taken if parameter != "args"}
            sizes |= dict.fromkeys({"etp_size", "recompute_modules"} & set(taken))
            recipe = script.override_recipe_configs(args=arguments, **sizes)
            for key, given in (_levers(of_recipe(recipe)) | _AROUND_A_RANK).items():
                yield Setting(name, gpu, precision, key, text_of(given), source)


def _arguments() -> set[str]:
    """The names of the command-line arguments that NVIDIA's parser has."""
    parser = importlib.import_module("scripts.performance.argument_parser")
    known = {action.dest for action in parser.parse_cli_args()._actions}
    return known - {"gpu", "compute_dtype", "fp8_recipe"}


def _of_recipe(name: str) -> Iterator[Setting]:
    """The levers of NeMo's recipe in its performance mode."""
    module = importlib.import_module(f"nemo.collections.llm.recipes.{name}")
    recipe = module.pretrain_recipe(name="x", performance_mode=True)
    source = f"NeMo 2.7.3 collections/llm/recipes/{name}.py, performance_mode"
    for key, given in _levers(of_recipe(recipe)).items():
        yield Setting(name, "*", "*", key, text_of(given), source)


def _of_bridge(presets: Path) -> Iterator[Setting]:
    """What Megatron-Bridge sets and NeMo's scripts leave to a table that is in no package."""
    recipes = {name.upper(): name for name in configs.recipe_names()}
    by_name = json.loads(presets.read_text())[BRIDGE]
    for constant, preset in by_name.items():
        head, _, tail = constant.partition("_PRETRAIN_CONFIG_")
        gpu, _, rest = tail.partition("_")
        precision, _, variant = rest.rpartition("_")
        newer = f"{head}_PRETRAIN_CONFIG_{gpu}_{precision}_V2" in by_name
        if head not in recipes or gpu.lower() not in configs.gpu_names() or precision not in _BRIDGE_PRECISIONS:
            continue
        if variant != ("V2" if newer else "V1"):
            continue
        for key, given in _bridge_levers(preset).items():
            source = f"Megatron-Bridge {BRIDGE} {constant}"
            yield Setting(recipes[head], gpu.lower(), _BRIDGE_PRECISIONS[precision], key, given, source)


def _bridge_levers(preset: dict[str, Any]) -> dict[str, str]:
    graphs, scope = preset.get("cuda_graph_impl") or "none", preset.get("cuda_graph_scope") or ""
    words = scope if isinstance(scope, str) else "+".join(scope)
    found = {"layout.cuda_graphs": text_of(graphs != "none")}
    if graphs != "none":
        found["levers.cuda_graph_scope"] = "full_iteration" if graphs == "full_iteration" else words or "layer"
    if backend := preset.get("moe_flex_dispatcher_backend"):
        found["layout.dispatcher"] = {"deepep": "flex"}.get(backend, backend)
    for key, name in (("levers.expert_comm_overlap", "moe_a2a_overlap"), ("layout.fsdp", "use_megatron_fsdp")):
        if preset.get(name):
            found[key] = "megatron" if key == "layout.fsdp" else "true"
    if layers := preset.get("cpu_offloading_num_layers"):
        found["layout.cpu_offload_layers"] = str(layers)
    if chunks := preset.get("pp_layout"):
        found["layout.pipeline_layout"] = str(chunks)
    return found


def _merged(settings: list[Setting]) -> list[Setting]:
    """The settings with ``*`` for a GPU or a precision on which a value does not depend."""
    by_lever: dict[tuple[str, str, str], list[Setting]] = {}
    for each in settings:
        by_lever.setdefault((each.recipe, each.key, each.source), []).append(each)
    out: list[Setting] = []
    for same in by_lever.values():
        if len(same) > 1 and len({each.value for each in same}) == 1:
            out.append(same[0]._replace(gpu="*", precision="*"))
            continue
        for gpu in dict.fromkeys(each.gpu for each in same):
            on_gpu = [each for each in same if each.gpu == gpu]
            alike = len({each.value for each in on_gpu}) == 1 and len(on_gpu) > 1
            out += [on_gpu[0]._replace(precision="*")] if alike else on_gpu
    return out


def settings_of(name: str) -> list[Setting]:
    """NVIDIA's settings in NeMo for a recipe; empty where NeMo has neither a script nor a performance mode."""
    if importlib.util.find_spec(f"scripts.performance.llm.pretrain_{name}"):
        return _merged(list(_of_script(name)))
    if not importlib.util.find_spec(f"nemo.collections.llm.recipes.{name}"):
        return []
    recipe = getattr(importlib.import_module(f"nemo.collections.llm.recipes.{name}"), "pretrain_recipe", None)
    if recipe is None:
        return []
    return list(_of_recipe(name)) if "performance_mode" in inspect.signature(recipe).parameters else []


def main() -> None:
    settings = [each for name in configs.recipe_names() for each in settings_of(name)]
    if "--presets" in sys.argv:
        settings += _merged(list(_of_bridge(Path(sys.argv[sys.argv.index("--presets") + 1]))))
    else:
        with TABLE.open(newline="") as file:
            settings += [Setting(**row) for row in csv.DictReader(file) if row["source"].startswith("Megatron-Bridge")]
    TABLE.parent.mkdir(exist_ok=True)
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Setting._fields)
        writer.writerows(sorted(settings))
    print(f"{len(settings)} settings of {len({each.recipe for each in settings})} recipes")


if __name__ == "__main__":
    main()
