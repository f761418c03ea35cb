"""What NeMo trains with after its own merges is what the recipe set, and what the planner priced."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from slipway import configs
from slipway.configs import Layout, Levers, Precision, Refusal, Spec, load
from slipway.configs.schema import Gemm
from tests.kinds import one_of_each_kind

TRAINED = ("bf16", "fp32", "fp8_delayed", "fp8_current", "fp8_blockwise", "mxfp8")


def _variants(spec: Spec) -> list[Spec]:
    """``spec`` in every precision that NeMo trains, with each switch of the precision turned over."""
    found = []
    for name in TRAINED:
        precision = replace(configs.precision(name), grad_reduce_in_fp32=spec.precision.grad_reduce_in_fp32)
        turned = [precision, replace(precision, grad_reduce_in_fp32=not precision.grad_reduce_in_fp32)]
        if precision.gemm is Gemm.fp8:
            turned += [
                replace(precision, fp8_param_gather=not precision.fp8_param_gather),
                replace(precision, first_last_layers_bf16=True, num_layers_at_start_in_bf16=1),
            ]
        found += [replace(spec, precision=each) for each in turned]
    return found


@pytest.mark.nemo
def test_nothing_that_a_recipe_sets_is_overwritten(in_child: Any) -> None:
    """A recipe of each kind, in every precision, with each switch of the precision turned over."""

    def overwritten_settings() -> dict[str, list[str]]:
        from slipway.recipes.build import build
        from slipway.recipes.runtime.merged import merge, overwritten

        wrong = {}
        for name in one_of_each_kind():
            for spec in _variants(load(name).spec):
                recipe = build(spec)
                merged = merge(recipe)
                found = overwritten(recipe, merged)
                if merged.ddp.grad_reduce_in_fp32 is not spec.precision.grad_reduce_in_fp32:
                    found.append("ddp.grad_reduce_in_fp32 is not the precision's")
                saves = merged.strategy
                if saves.save_ckpt_format != "torch_dist" or not saves.ckpt_optim_fully_reshardable:
                    found.append("no checkpoint that the tests of tests/rehearsal resume and reshard")
                if found:
                    wrong[f"{name} {spec.precision}"] = found
        recipe = build(load("llama3_8b").spec)
        recipe.trainer.strategy.ddp.grad_reduce_in_fp32 = False
        wrong["changed"] = overwritten(recipe, merge(recipe))
        return wrong

    seen = in_child(overwritten_settings)
    assert seen.pop("changed") == ["strategy.ddp.grad_reduce_in_fp32 = False became True"]
    assert seen == {}


Built = Callable[[Any, Any], Any]  # (the recipe, the merged objects) -> the value that trains


def _model(name: str) -> Built:
    return lambda recipe, merged: getattr(merged.model, name)


def _ddp(name: str) -> Built:
    return lambda recipe, merged: getattr(merged.ddp, name)


def _optimizer(name: str) -> Built:
    return lambda recipe, merged: getattr(merged.optimizer, name)


def _callback(name: str, argument: str) -> Built:
    def built(recipe: Any, _: Any) -> Any:
        found = [each for each in recipe.trainer.callbacks if each.__fn_or_cls__.__name__ == name]
        return getattr(found[0], argument) if found else None

    return built


# Key -> (recipe, overrides, what is read from the built objects, its value with the overrides). It differs without the
# last override.
BUILT: dict[str, tuple[str, str, Built, Any]] = {
    "layout.tp": ("llama3_8b", "layout.tp=2", _model("tensor_model_parallel_size"), 2),
    "layout.pp": ("llama3_8b", "layout.pp=2", _model("pipeline_model_parallel_size"), 2),
    "layout.vpp": ("llama3_8b", "layout.pp=2 layout.vpp=2", _model("virtual_pipeline_model_parallel_size"), 2),
    "layout.pipeline_layout": (
        "llama3_8b",
        "layout.pp=2 layout.pipeline_layout=Et*15|t*17L",
        lambda _, merged: merged.strategy.pipeline_model_parallel_layout,
        "Et*15|t*17L",
    ),
    "layout.cp": ("llama3_8b", "layout.cp=2", _model("context_parallel_size"), 2),
    "layout.ep": ("mixtral_8x7b", "layout.ep=2", _model("expert_model_parallel_size"), 2),
    "layout.etp": ("mixtral_8x7b", "layout.tp=2 layout.etp=1", _model("expert_tensor_parallel_size"), 1),
    "layout.sp": ("llama3_8b", "layout.tp=2 layout.sp=false", _model("sequence_parallel"), False),
    "layout.mbs": ("llama3_8b", "layout.mbs=2", lambda recipe, _: recipe.data.micro_batch_size, 2),
    "layout.gbs": ("llama3_8b", "layout.gbs=64", lambda recipe, _: recipe.data.global_batch_size, 64),
    "layout.seq_length": ("llama3_8b", "layout.seq_length=4096", _model("seq_length"), 4096),
    "layout.recompute": ("llama3_8b", "layout.recompute=full", _model("recompute_granularity"), "full"),
    "layout.recompute_modules": (
        "llama3_8b",
        "layout.recompute=selective layout.recompute_modules=[mlp]",
        _model("recompute_modules"),
        ["mlp"],
    ),
    "layout.recompute_method": (
        "llama3_8b",
        "layout.recompute=full layout.recompute_method=block",
        _model("recompute_method"),
        "block",
    ),
    "layout.recompute_num_layers": (
        "llama3_8b",
        "layout.recompute=full layout.recompute_num_layers=4",
        _model("recompute_num_layers"),
        4,
    ),
    "layout.distributed_optimizer": (
        "llama3_8b",
        "layout.distributed_optimizer=false",
        _ddp("use_distributed_optimizer"),
        False,
    ),
    "layout.overlap_grad_reduce": ("llama3_8b", "layout.overlap_grad_reduce=false", _ddp("overlap_grad_reduce"), False),
    "layout.overlap_param_gather": (
        "llama3_8b",
        "layout.overlap_param_gather=false",
        _ddp("overlap_param_gather"),
        False,
    ),
    "layout.tp_comm_overlap": ("llama3_8b", "layout.tp=2 layout.tp_comm_overlap=true", _model("tp_comm_overlap"), True),
    "layout.dispatcher": (
        "mixtral_8x7b",
        "layout.dispatcher=allgather",
        _model("moe_token_dispatcher_type"),
        "allgather",
    ),
    "layout.moe_expert_capacity_factor": (
        "mixtral_8x7b",
        "layout.moe_expert_capacity_factor=1.5",
        _model("moe_expert_capacity_factor"),
        1.5,
    ),
    "layout.moe_pad_expert_input_to_capacity": (
        "mixtral_8x7b",
        "layout.moe_expert_capacity_factor=1 layout.moe_pad_expert_input_to_capacity=true",
        _model("moe_pad_expert_input_to_capacity"),
        True,
    ),
    "layout.num_layers_in_first_pipeline_stage": (
        "llama3_8b",
        "layout.pp=4 layout.num_layers_in_first_pipeline_stage=5",
        _model("num_layers_in_first_pipeline_stage"),
        5,
    ),
    "layout.num_layers_in_last_pipeline_stage": (
        "llama3_8b",
        "layout.pp=4 layout.num_layers_in_last_pipeline_stage=5",
        _model("num_layers_in_last_pipeline_stage"),
        5,
    ),
    "layout.account_for_embedding": (
        "llama3_8b",
        "layout.account_for_embedding=true",
        _model("account_for_embedding_in_pipeline_split"),
        True,
    ),
    "layout.account_for_loss": (
        "llama3_8b",
        "layout.account_for_loss=true",
        _model("account_for_loss_in_pipeline_split"),
        True,
    ),
    "layout.cpu_offload_layers": (
        "llama3_8b",
        "layout.cpu_offload_layers=2",
        _model("cpu_offloading_num_layers"),
        2,
    ),
    "layout.optimizer_cpu_offload": (
        "llama3_8b",
        "layout.optimizer_cpu_offload=true",
        _optimizer("optimizer_cpu_offload"),
        True,
    ),
    "layout.cuda_graphs": (
        "llama3_8b",
        "layout.recompute=none layout.cuda_graphs=true",
        _model("cuda_graph_impl"),
        "local",
    ),
    "layout.fused_cross_entropy": (
        "llama3_8b",
        "layout.fused_cross_entropy=false",
        _model("cross_entropy_loss_fusion"),
        False,
    ),
    "layout.attention_backend": (
        "llama3_8b",
        "layout.attention_backend=flash",
        lambda recipe, merged: merged.model.attention_backend.name,
        "flash",
    ),
    "precision.gemm": ("llama3_8b", "precision=fp8_current", _model("fp8"), "hybrid"),
    "precision.fp8_recipe": ("llama3_8b", "precision=fp8_current", _model("fp8_recipe"), "tensorwise"),
    "precision.fp8_format": ("llama3_8b", "precision=fp8_current precision.fp8_format=e4m3", _model("fp8"), "e4m3"),
    "precision.fp8_param_gather": (
        "llama3_8b",
        "precision=fp8_delayed precision.fp8_param_gather=false",
        _ddp("fp8_param_gather"),
        False,
    ),
    "precision.first_last_layers_bf16": (
        "llama3_8b",
        "precision=fp8_current precision.first_last_layers_bf16=false",
        _model("first_last_layers_bf16"),
        False,
    ),
    "precision.num_layers_at_start_in_bf16": (
        "llama3_8b",
        "precision=fp8_current precision.num_layers_at_start_in_bf16=3",
        _model("num_layers_at_start_in_bf16"),
        3,
    ),
    "precision.num_layers_at_end_in_bf16": (
        "llama3_8b",
        "precision=fp8_current precision.num_layers_at_end_in_bf16=3",
        _model("num_layers_at_end_in_bf16"),
        3,
    ),
    "precision.grad_reduce_in_fp32": (
        "llama3_8b",
        "precision.grad_reduce_in_fp32=false",
        _ddp("grad_reduce_in_fp32"),
        False,
    ),
    "levers.wgrad_deferral_limit": (
        "llama3_8b",
        "layout.pp=2 levers.wgrad_deferral_limit=4",
        _callback("MegatronCommOverlapCallback", "wgrad_deferral_limit"),
        4,
    ),
    "levers.bucket_size": ("llama3_8b", "levers.bucket_size=0", _ddp("bucket_size"), 40_000_000),
    "levers.align_param_gather": (
        "llama3_8b",
        "layout.pp=2 layout.vpp=2 levers.align_param_gather=false",
        _ddp("align_param_gather"),
        False,
    ),
    "levers.optimizer_instances": (
        "llama3_8b",
        "levers.optimizer_instances=2",
        _ddp("num_distributed_optimizer_instances"),
        2,
    ),
    "levers.sharp": ("llama3_8b", "levers.sharp=true", lambda _, merged: merged.strategy.use_sharp, True),
    "levers.check_for_nan": ("llama3_8b", "levers.check_for_nan=false", _ddp("check_for_nan_in_grad"), False),
    "levers.moe_router_fusion": (
        "mixtral_8x7b",
        "levers.moe_router_fusion=true",
        _model("moe_router_fusion"),
        True,
    ),
    "levers.gc_interval": (
        "llama3_8b",
        "levers.gc_interval=7",
        _callback("GarbageCollectionCallback", "gc_interval_train"),
        7,
    ),
    "optim.moments": (
        "llama3_8b",
        "optim.precision_aware=true optim.moments=fp32",
        lambda recipe, merged: str(merged.optimizer.exp_avg_sq_dtype),
        "torch.float32",
    ),
    "optim.precision_aware": (
        "llama3_8b",
        "optim.precision_aware=true",
        lambda recipe, merged: str(merged.optimizer.exp_avg_dtype),
        "torch.bfloat16",
    ),
}
# What is planned and refused where a recipe is built.
REFUSED = {
    "layout.schedule": "layout.schedule=gpipe",
    "layout.fsdp": "layout.fsdp=megatron",
    "levers.overlap_param_gather_with_optimizer_step": "levers.overlap_param_gather_with_optimizer_step=true",
    "levers.expert_comm_overlap": "levers.expert_comm_overlap=true",
    "levers.delay_wgrad": "levers.delay_wgrad=true",
    "levers.cuda_graph_scope": "levers.cuda_graph_scope=attention",
}
# What surrounds a rank (tests/launch/test_rank_environment.py, tests/recipes/test_numa.py).
AROUND_A_RANK = {"levers.numa_binding", "levers.layernorm_sm_margin", "levers.nvls", "levers.p2p_chunk_bytes"}
# Who or where a value comes from, how the search completes a layout, and which GPUs a format needs: nothing is built.
NOT_BUILT = {
    "layout.source",
    "layout.split_unevenly",
    "precision.name",
    "precision.source",
    "precision.min_compute_capability",
    "precision.max_compute_capability",
}


def test_every_priced_key_says_where_it_is_built() -> None:
    keys = {f"layout.{field.name}" for field in dataclasses.fields(Layout)}
    keys |= {f"precision.{field.name}" for field in dataclasses.fields(Precision)}
    keys |= {f"levers.{field.name}" for field in dataclasses.fields(Levers)}
    keys |= {"optim.precision_aware", "optim.moments"}
    said = [set(BUILT), set(REFUSED), AROUND_A_RANK, NOT_BUILT]
    assert set().union(*said) == keys, "give the key an entry: what is built where it changes"
    assert sum(map(len, said)) == len(keys), "a key is in one table"


@pytest.mark.nemo
def test_what_the_planner_prices_is_what_is_built(in_child: Any) -> None:
    def values() -> dict[str, Any]:
        from slipway.recipes.build import build
        from slipway.recipes.runtime.merged import merge

        def read(recipe_name: str, overrides: list[str], built: Built) -> Any:
            recipe = build(load(recipe_name, overrides).spec)
            return built(recipe, merge(recipe))

        seen: dict[str, Any] = {}
        for key, (name, overrides, built, _) in BUILT.items():
            words = overrides.split()
            try:
                seen[key] = [read(name, words, built), read(name, words[:-1], built)]
            except Exception as error:
                seen[key] = [f"{type(error).__name__}: {error}"[:300], None]
        for override in REFUSED.values():
            with pytest.raises(Refusal, match="can be planned for but not trained|cannot be trained"):
                build(load("llama3_8b", [override]).spec)
        return seen

    seen = in_child(values)
    wrong = {key: seen[key] for key in BUILT if seen[key][0] != BUILT[key][3] or seen[key][1] == seen[key][0]}
    assert wrong == {}


@pytest.mark.nemo
def test_gradients_have_the_bytes_that_are_planned(in_child: Any) -> None:
    """The type of Megatron-Core's gradient buffer: ``grad_reduce_in_fp32`` of the merged configuration."""

    def built() -> list[tuple[str, float, float]]:
        from slipway.planner.numerics import numerics_of
        from slipway.recipes.build import build
        from slipway.recipes.runtime.merged import merge

        out = []
        for name in one_of_each_kind():
            for spec in (load(name).spec, load(name, ["precision.grad_reduce_in_fp32=true"]).spec):
                merged = merge(build(spec))
                out.append(
                    (name, numerics_of(spec).reduced_gradient_bytes, 4.0 if merged.ddp.grad_reduce_in_fp32 else 2.0)
                )
        return out

    for name, planned, trained in in_child(built):
        assert planned == trained, name
