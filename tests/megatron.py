"""What Megatron-Core itself builds for one rank of a spec: in a fake world, on the meta device.

Import this module in forked children only.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from slipway.configs import Spec


@contextlib.contextmanager
def fake_world(rank: int, world_size: int) -> Iterator[None]:
    """A process group of ``world_size`` ranks of which only ``rank`` exists: to build a full-size model's shapes."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def parts_of_objects(recipe: Any) -> Any:
    """The parts of ``recipe`` as its ranks have them."""
    from slipway.recipes.readback import of_run

    return of_run(**objects_of(recipe))


def objects_of(recipe: Any) -> dict[str, Any]:
    """The arguments that ``recipe`` calls its function with, built; the trainer, which needs its GPUs, is not."""
    from types import SimpleNamespace

    import fiddle as fdl

    trainer = recipe.trainer
    built = SimpleNamespace(
        strategy=fdl.build(trainer.strategy),
        precision_plugin=fdl.build(trainer.plugins),
        callbacks=[fdl.build(each) for each in trainer.callbacks],
        __io__=trainer,
    )
    model, data, optim = (fdl.build(part) for part in (recipe.model, recipe.data, recipe.optim))
    log = fdl.build(recipe.log)
    return {"model": model, "data": data, "trainer": built, "log": log, "resume": recipe.resume, "optim": optim}


class _Tokenizer:
    def __init__(self, size: int) -> None:
        self.vocab_size = size


def build_rank(spec: Spec, rank: int) -> list[tuple[int, int]]:
    """As :func:`build_ranks`, of one rank."""
    return next(build_ranks(spec, [rank]))


def build_ranks(spec: Spec, ranks: Iterable[int]) -> Iterator[list[tuple[int, int]]]:
    """Decoder layers and parameters of each model chunk of each rank. Raises what Megatron-Core raises.

    The modules are those of the GPU recipe after NeMo's merges, with the arguments that Megatron-Core gives to
    Transformer Engine, on the meta device.
    """
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.moe import token_dispatcher
    from nemo.collections.llm.gpt.model.base import GPTConfig

    from slipway.recipes.build import build
    from slipway.recipes.runtime.merged import merge

    config: Any = merge(build(spec)).model
    assert isinstance(config, GPTConfig), "configure_model below is GPTConfig's"
    config.perform_initialization, config.init_model_with_meta_device = False, True
    config.gradient_accumulation_fusion = False  # needs Apex, which NVIDIA's images have
    for name in [name for name in os.environ if name.startswith("NVTE_")]:  # set by a model of another backend
        del os.environ[name]
    # What only exists where CUDA is: the device, the memory of CUDA graphs, and DeepEP.
    torch.cuda.current_device = lambda: torch.device("meta")  # type: ignore[assignment, return-value]
    # A generator's state is set once CUDA is there. PyTorch keeps each such call until then, with its stack as text.
    random._lazy_call = lambda call, **_: None
    torch.cuda.graph_pool_handle = lambda: (0, 0)
    token_dispatcher.fused_dispatch, token_dispatcher.set_deepep_num_sms = object(), lambda count: None
    for rank in ranks:
        yield _chunks(spec, rank, copy.deepcopy(config))


def _chunks(spec: Spec, rank: int, config: Any) -> list[tuple[int, int]]:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    lay = spec.layout
    with fake_world(rank, spec.gpus):
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=lay.tp,
            pipeline_model_parallel_size=lay.pp,
            virtual_pipeline_model_parallel_size=lay.vpp if lay.vpp > 1 else None,
            context_parallel_size=lay.cp,
            expert_model_parallel_size=lay.ep,
            expert_tensor_parallel_size=lay.etp or None,
            num_distributed_optimizer_instances=spec.levers.optimizer_instances,
            create_gloo_process_groups=False,
        )
        seed, tracks_by_te = spec.run.seed, config.use_te_rng_tracker
        model_parallel_cuda_manual_seed(seed, te_rng_tracker=tracks_by_te, force_reset_rng=True)
        chunks = []
        for stage in range(lay.vpp):
            model = config.configure_model(_Tokenizer(spec.model.vocab_size), vp_stage=stage if lay.vpp > 1 else None)
            chunks.append((len(model.decoder.layers), sum(p.numel() for p in model.parameters())))
        return chunks


def stage_rank(spec: Spec, stage: int) -> int:
    """The first global rank of a pipeline stage: Megatron orders ranks tp-cp-ep-dp-pp."""
    return stage * (spec.gpus // spec.layout.pp)
