"""What Megatron-Core itself builds for one rank of a spec: in a fake world, on the meta device.

Import this module in forked children only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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


class _Tokenizer:
    def __init__(self, size: int) -> None:
        self.vocab_size = size


def build_rank(spec: Spec, rank: int) -> list[tuple[int, int]]:
    """Decoder layers and parameters of each model chunk of ``rank``. Raises what Megatron raises."""
    import fiddle as fdl
    from megatron.core import parallel_state
    from nemo.collections.llm.gpt.model.base import GPTModel

    from slipway.recipes.build import build

    lay = spec.layout
    with fake_world(rank, spec.gpus):
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=lay.tp,
            pipeline_model_parallel_size=lay.pp,
            virtual_pipeline_model_parallel_size=lay.vpp if lay.vpp > 1 else None,
            context_parallel_size=lay.cp,
            expert_model_parallel_size=lay.ep,
            expert_tensor_parallel_size=lay.etp or None,
            create_gloo_process_groups=False,
        )
        recipe = build(spec, cpu=True)
        assert issubclass(recipe.model.__fn_or_cls__, GPTModel), "configure_model below is GPTModel's"
        config: Any = recipe.model.config
        for name, value in {
            "tensor_model_parallel_size": lay.tp,
            "pipeline_model_parallel_size": lay.pp,
            "virtual_pipeline_model_parallel_size": lay.vpp if lay.vpp > 1 else None,
            "context_parallel_size": lay.cp,
            "expert_model_parallel_size": lay.ep,
            "expert_tensor_parallel_size": lay.etp or None,
            "sequence_parallel": lay.sequence_parallel,
            "pipeline_dtype": torch.bfloat16,
            "params_dtype": torch.bfloat16,
            "num_layers_in_first_pipeline_stage": lay.num_layers_in_first_pipeline_stage or None,
            "num_layers_in_last_pipeline_stage": lay.num_layers_in_last_pipeline_stage or None,
            "account_for_embedding_in_pipeline_split": lay.account_for_embedding,
            "account_for_loss_in_pipeline_split": lay.account_for_loss,
            "use_cpu_initialization": False,
            "perform_initialization": False,
            "init_model_with_meta_device": True,
        }.items():
            setattr(config, name, value)
        built = fdl.build(config)
        chunks = []
        for stage in range(lay.vpp):
            model = built.configure_model(_Tokenizer(spec.model.vocab_size), vp_stage=stage if lay.vpp > 1 else None)
            chunks.append((len(model.decoder.layers), sum(p.numel() for p in model.parameters())))
        return chunks


def stage_rank(spec: Spec, stage: int) -> int:
    """The first global rank of a pipeline stage: Megatron orders ranks tp-cp-ep-dp-pp."""
    return stage * (spec.gpus // spec.layout.pp)
