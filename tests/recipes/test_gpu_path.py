"""The parts of a recipe that only a GPU reaches, as far as they go without one: after the setup of the callbacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from slipway import configs, planner
from slipway.configs import Refusal, load
from slipway.recipes.runtime.kernels import require_kernels
from tests.kinds import one_of_each_kind


def trained(name: str, *overrides: str) -> tuple[Any, Any]:
    """The merged objects of a recipe after the ``setup`` of its callbacks of NeMo, and those callbacks.

    Run it in a forked child, within :func:`tests.megatron.transformer_engine`.
    """
    from types import SimpleNamespace

    import fiddle as fdl

    from slipway.recipes.build import build
    from slipway.recipes.build.callbacks import gpu_callbacks
    from slipway.recipes.runtime.merged import merge

    spec = load(name, list(overrides)).spec
    recipe = build(spec)
    expected = [callback.__fn_or_cls__ for callback in gpu_callbacks(spec)]
    callbacks = [fdl.build(each) for each in recipe.trainer.callbacks if each.__fn_or_cls__ in expected]
    assert [type(each) for each in callbacks] == expected
    merged = merge(recipe)
    model = SimpleNamespace(config=merged.model, optim=SimpleNamespace(config=merged.optimizer))
    for callback in callbacks:
        callback.setup(SimpleNamespace(strategy=merged.strategy, model=model), None, "fit")
    return merged, callbacks


@pytest.mark.nemo
def test_what_the_first_step_asserts_is_set(in_child: Any) -> None:
    def seen() -> dict[str, Any]:
        import nemo.lightning.pytorch.callbacks.megatron_comm_overlap as overlap
        import torch
        from megatron.core.config import is_experimental_enabled
        from nemo.utils import AppState

        torch.cuda.get_device_capability = lambda *_: (9, 0)
        overlap.HAVE_TE = True
        ranks = AppState()
        ranks.data_parallel_size, ranks.tensor_model_parallel_size, ranks.context_parallel_size = 8, 4, 1
        found: dict[str, Any] = {"experimental before": is_experimental_enabled()}
        latent, _ = trained("deepseek_v3")
        found["experimental"] = is_experimental_enabled() and latent.model.apply_rope_fusion
        for name in one_of_each_kind():
            if trained(name)[0].model.use_transformer_engine_full_layer_spec:
                found[f"{name} imports what NeMo removed"] = True
        graphs, _ = trained("llama3_8b", "layout.cuda_graphs=true", "layout.recompute=none")
        found["graphs"] = [
            graphs.model.cuda_graph_impl,
            graphs.model.use_te_rng_tracker,
            graphs.strategy.use_te_rng_tracker,
            graphs.strategy.parallelism.use_te_rng_tracker,
        ]
        for name in ("deepseek_v3", "qwen3_30b_a3b"):
            flex = trained(name, "layout.dispatcher=flex", "layout.ep=8")[0].model
            found[f"{name} flex"] = [
                flex.moe_token_dispatcher_type,
                flex.moe_enable_deepep,
                flex.moe_shared_expert_overlap,
                flex.moe_router_dtype,
            ]
        words = ["layout.tp=4", "layout.tp_comm_overlap=true", "layout.overlap_param_gather=false"]
        for name in ("llama3_70b", "llama3_8b"):
            merged, [callback, _] = trained(name, *words, "layout.mbs=1", "layout.pp=1", "layout.cp=1")
            settings = callback.tp_comm_overlap_cfg
            found[f"{name} overlap"] = [
                callback.need_tp_overlap_ub_init,
                callback.tp_comm_bootstrap_backend,
                settings and settings.qkv_wgrad.num_sm,
                merged.model.tp_comm_overlap,
                merged.ddp.overlap_grad_reduce,
                merged.ddp.overlap_param_gather,
            ]
        return found

    assert in_child(seen) == {
        "experimental before": False,
        "experimental": True,
        "graphs": ["local", True, True, True],
        "deepseek_v3 flex": ["flex", True, False, "fp32"],
        "qwen3_30b_a3b flex": ["flex", True, False, "fp32"],
        "llama3_70b overlap": [True, "nccl", 24, True, True, False],
        "llama3_8b overlap": [True, "nccl", None, True, True, False],
    }


@pytest.mark.nemo
def test_graphs_are_captured_without_expandable_segments(in_child: Any) -> None:
    def seen() -> list[Any]:
        from slipway.recipes.build import build
        from slipway.recipes.front_door import allocate_for_graphs

        variable, found = "PYTORCH_CUDA_ALLOC_CONF", []
        for change in ("layout.cuda_graphs=false", "layout.cuda_graphs=true"):
            os.environ[variable] = "expandable_segments:True"
            allocate_for_graphs(build(load("llama3_8b", [change]).spec).model.config)
            found.append(os.environ.get(variable))
        os.environ[variable] = "expandable_segments:True,max_split_size_mb:64"
        with pytest.raises(Refusal, match="max_split_size_mb:64 with CUDA graphs"):
            allocate_for_graphs(build(load("llama3_8b", [change]).spec).model.config)
        return found

    assert in_child(seen) == ["expandable_segments:True", None]


@pytest.mark.parametrize(
    ("name", "module", "without"),
    [
        ("deepseek_v3", "deep_ep", "layout.dispatcher=alltoall"),
        ("llama3_70b", "fused_weight_gradient_mlp_cuda", "levers.wgrad_deferral_limit=0"),
    ],
)
def test_kernels_that_an_image_lacks_are_named_before_the_first_step(
    name: str, module: str, without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spec(*words: str) -> configs.Spec:
        return planner.complete(load(name, list(words)))

    with pytest.raises(Refusal, match=f"the module {module}.*not installed here") as refused:
        require_kernels(spec())
    assert refused.value.fix == f"Use {without}, or an image that has it."
    require_kernels(spec(without))
    (tmp_path / f"{module}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    require_kernels(spec())


@pytest.mark.nemo
def test_a_rank_on_a_gpu_asks_for_its_kernels(in_child: Any) -> None:
    def said() -> str:
        from slipway.recipes.build import build
        from slipway.recipes.readback.judge import judge_run
        from tests.megatron import objects_of

        try:
            judge_run(**objects_of(build(planner.complete(load("llama3_70b")))))
        except Refusal as refusal:
            return refusal.message
        return ""

    assert "needs Apex" in in_child(said)


# Where the file of a precision departs from NeMo's recipe that it names, and why.
DEPARTURES = {
    "mxfp8": {"fp8_param_gather", "reuse_grad_buf_for_mxfp8_param_ag"},  # rule mxfp8-param-gather
    "fp8_blockwise": {"fp8"},  # e4m3 for gradients too, as DeepSeek-V3 was trained (arXiv:2412.19437 section 3.3)
}
NEMO = {
    "bf16": "bf16_mixed",
    "fp8_delayed": "bf16_with_fp8_mixed",
    "fp8_current": "bf16_with_fp8_current_scaling_mixed",
    "fp8_blockwise": "bf16_with_fp8_subchannel_scaling_mixed",
    "mxfp8": "bf16_with_mxfp8_mixed",
}


@pytest.mark.nemo
def test_each_precision_is_that_of_nemo_except_where_it_says_so(in_child: Any) -> None:
    def departures() -> dict[str, list[str]]:
        import dataclasses

        import fiddle as fdl
        from nemo.collections.llm.recipes.precision import mixed_precision

        from slipway.recipes.build.precision import precision_plugin

        found = {}
        for name, factory in NEMO.items():
            spec = load("llama3_8b", [f"precision={name}", "gpu=b200"]).spec
            ours, theirs = (fdl.build(each) for each in (precision_plugin(spec), getattr(mixed_precision, factory)()))
            fields = [field.name for field in dataclasses.fields(ours.dtype_config)]
            differ = [f for f in fields if getattr(ours.dtype_config, f) != getattr(theirs.dtype_config, f)]
            found[name] = sorted(set(differ) - {"fp8_param"})  # a second name of fp8_param_gather
        gathered = load("llama3_8b", ["precision=mxfp8", "gpu=b200", "precision.fp8_param_gather=true"]).spec
        assert fdl.build(precision_plugin(gathered)).dtype_config.reuse_grad_buf_for_mxfp8_param_ag
        return found

    assert in_child(departures) == {name: sorted(DEPARTURES.get(name, ())) for name in NEMO}


# One change each. Every precision, with each of its switches, is in tests/recipes/test_merged.py for every recipe; the
# pairs of switches that exclude each other have rules (tests/planner/test_rules_are_true.py draws them at random).
SWITCHES = (
    "layout.tp=2",
    "layout.tp=2 layout.sp=false",
    "layout.tp=2 layout.tp_comm_overlap=true",
    "layout.pp=2",
    "layout.pp=4 layout.vpp=2",
    "layout.cp=2",
    "layout.tp=1 layout.ep=8 layout.dispatcher=flex",
    "layout.tp=1 layout.ep=8 layout.dispatcher=allgather",
    "layout.tp=2 layout.ep=8 layout.etp=1",
    "layout.ep=8 layout.moe_expert_capacity_factor=1 layout.moe_pad_expert_input_to_capacity=true",
    "layout.ep=8 layout.moe_expert_capacity_factor=1 layout.moe_pad_expert_input_to_capacity=true "
    "layout.cuda_graphs=true layout.recompute=none",
    "layout.recompute=none",
    "layout.recompute=full",
    "layout.recompute=full layout.recompute_method=block layout.recompute_num_layers=1",
    "layout.recompute=selective layout.recompute_modules=[mlp]",
    "layout.recompute=selective layout.recompute_modules=[layernorm]",
    "layout.recompute=selective layout.recompute_modules=[shared_experts]",
    "layout.recompute=none layout.cuda_graphs=true",
    "layout.recompute=none layout.pp=1 layout.cpu_offload_layers=2",
    "layout.distributed_optimizer=false",
    "layout.overlap_grad_reduce=false layout.overlap_param_gather=false",
    "layout.optimizer_cpu_offload=true",
    "layout.fused_cross_entropy=false",
    "layout.attention_backend=flash",
    "layout.attention_backend=fused",
    "layout.attention_backend=unfused",
    "layout.attention_backend=local",
    "layout.account_for_embedding=true layout.account_for_loss=true",
    "optim.precision_aware=true",
    "optim.precision_aware=true optim.moments=fp32",
    "layout.dispatcher=auto layout.ep=8",
    "layout.tp=1 layout.cp=1 layout.pp=4 layout.vpp=2 levers.wgrad_deferral_limit=22",
    "layout.tp=2 layout.pp=2 layout.tp_comm_overlap=true levers.wgrad_deferral_limit=22",
    "levers.bucket_size=0 levers.align_param_gather=true",
    "layout.tp=1 layout.pp=1 layout.cp=1 layout.ep=1 levers.optimizer_instances=2 levers.sharp=true",
    "levers.check_for_nan=false levers.gc_interval=0",
    "levers.moe_router_fusion=true",
)


@pytest.mark.nemo
def test_each_switch_that_is_legal_is_accepted_by_megatron_core(in_child: Any) -> None:
    """A recipe of each kind on an H100 and a B200, one switch at a time: refused, or accepted after NeMo's merges."""

    def tried() -> dict[str, Any]:
        from slipway.planner import is_legal
        from slipway.recipes.build import build
        from slipway.recipes.runtime.merged import merge

        wrong, accepted = {}, dict.fromkeys(SWITCHES, 0)
        for name in one_of_each_kind():
            for gpu in ("h100", "b200"):
                for switch in SWITCHES:
                    spec = load(name, [f"gpu={gpu}", *switch.split()]).spec
                    if not is_legal(spec):
                        continue
                    try:
                        merge(build(spec))
                        accepted[switch] += 1
                    except Exception as error:
                        wrong[f"{name} {gpu} {switch}"] = f"{type(error).__name__}: {error}"[:200]
        return {"wrong": wrong, "never legal": [switch for switch, count in accepted.items() if not count]}

    assert in_child(tried) == {"wrong": {}, "never legal": []}


@pytest.mark.nemo
def test_callbacks_are_exported(in_child: Any, tmp_path: Path) -> None:
    def kept() -> list[bool]:
        from slipway.launch.export import built_recipe, dump
        from slipway.launch.export import load as load_recipe

        overlap = ["layout.tp=4", "layout.pp=8", "layout.cp=1", "layout.mbs=1", "layout.tp_comm_overlap=true"]
        found, path = [], tmp_path / "recipe.yaml"
        for name, overrides in (("llama3_70b", [*overlap, "precision=bf16"]), ("deepseek_v3", [])):
            recipe = built_recipe(name, overrides)
            path.write_text(dump(recipe))
            found.append(load_recipe(path) == recipe)
        return found

    assert in_child(kept) == [True, True]
