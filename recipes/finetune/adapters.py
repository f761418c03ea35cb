"""NeMo's LoRA and DoRA, with first weights that depend on the seed and on no layout."""

# Without postponed annotations: NeMo-Run's command line reads the types of the constructors' arguments.
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from nemo.collections.llm import peft
from nemo.collections.llm.peft.dora import DoRALinear, ParallelLinearDoRAAdapter
from nemo.lightning.megatron_parallel import MegatronParallel

from slipway.configs import Refusal

_PART = ".adapter."  # in the name of every tensor of an adapter
_DRAWN = "linear_in.weight"  # the other matrix starts at zero


@dataclass
class LoRA(peft.LoRA):
    """:class:`nemo.collections.llm.peft.LoRA` whose first weights no layout changes.

    Upstream draws them from each rank's generator, and by the size of the rank's part: with another layout, another
    model is trained.
    """

    seed: int = 1234

    def transform(self, m: torch.nn.Module, name: str | None = None, prefix: str | None = None) -> torch.nn.Module:
        return _stored_as_its_layer(super().transform(m, name, prefix))

    def __call__(self, model: torch.nn.Module) -> torch.nn.Module:
        return _adapted(super().__call__(model), self.seed, self.target_modules)


_GATED = "linear_fc1"  # in the name of a layer whose rows NeMo stores as all gates, then all up-projections


def _stored_as_its_layer(made: torch.nn.Module) -> torch.nn.Module:
    """An adapted layer whose adapter's rows a checkpoint has in the order of the layer's own.

    Upstream takes every ``linear_fc1`` for a gated one, and would mix the rows of others under tensor parallelism.
    """
    adapter = getattr(made, "adapter", None)
    if adapter is not None and not made.to_wrap.config.gated_linear_unit:
        adapter.base_linear_name = adapter.base_linear_name.replace(_GATED, "linear_fc_1")
    return made


class _WholeRows(DoRALinear):
    """NeMo's, where a row of the weight is split among the tensor-parallel ranks.

    Upstream takes the norm of a rank's part of a row for that of the row, so that the model depends on the layout; and
    under sequence parallelism each rank has the gradient of its own part of the sequence only.
    """

    def __init__(self, to_wrap: torch.nn.Module, adapter: ParallelLinearDoRAAdapter) -> None:
        super().__init__(to_wrap, adapter)
        if adapter.input_is_parallel:
            adapter.weight_magnitude.sequence_parallel = to_wrap.config.sequence_parallel

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Upstream stores the lengths of a gated layer's rows in the order of the ranks, unlike its other tensors."""
        state: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        key = f"{prefix}adapter.weight_magnitude"
        if _GATED in self.adapter.base_linear_name:
            state[key] = apply_swiglu_sharded_factory(state[key], sharded_offsets)
        return state

    def _get_weight_norm(self) -> torch.Tensor:
        norm = super()._get_weight_norm()
        if not self.adapter.input_is_parallel:
            return norm
        squares = norm.float().square()
        torch.distributed.all_reduce(squares, group=parallel_state.get_tensor_model_parallel_group())
        return squares.sqrt().to(norm.dtype)


@dataclass
class DoRA(peft.DoRA):
    """:class:`nemo.collections.llm.peft.DoRA`, likewise, with row norms of whole rows."""

    seed: int = 1234

    def transform(self, m: torch.nn.Module, name: str | None = None, prefix: str | None = None) -> torch.nn.Module:
        made = super().transform(m, name, prefix)
        return _stored_as_its_layer(_WholeRows(made.to_wrap, made.adapter) if isinstance(made, DoRALinear) else made)

    def __call__(self, model: torch.nn.Module) -> torch.nn.Module:
        return _adapted(super().__call__(model), self.seed, self.target_modules)


def _adapted(model: torch.nn.Module, seed: int, targets: list[str]) -> torch.nn.Module:
    """``model`` after its adapters have got their first weights.

    Raises:
        Refusal: there are none.
    """
    found = 0
    for chunk in _chunks(model):
        found += _draw(chunk, seed)
        _let_gradients_through(chunk)
    if not _anywhere(found):
        raise Refusal(
            f"task.lora_targets={targets} match no layer of the model, so nothing would train",
            "Use task.lora_targets=[linear_qkv,linear_proj,linear_fc1,linear_fc2].",
        )
    return model


def _anywhere(found: int) -> bool:
    """Whether any rank has an adapter: one with the embedding alone has none."""
    if not torch.distributed.is_initialized():
        return found > 0
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor(found, device=device)
    torch.distributed.all_reduce(total)
    return int(total) > 0


def _chunks(model: torch.nn.Module) -> Iterator[Any]:
    for chunk in list(model) if isinstance(model, MegatronParallel) else [model]:
        while not hasattr(chunk, "sharded_state_dict") or hasattr(chunk, "configure_model"):
            chunk = chunk.module
        yield chunk


def _draw(chunk: Any, seed: int) -> int:
    """Draw the first matrix of each adapter whole, as Xavier's normal distribution, and keep this rank's part."""
    drawn = 0
    for item in list(nested_values(chunk.sharded_state_dict())):
        if not (isinstance(item, ShardedTensor) and _PART in item.key and item.key.endswith(_DRAWN)):
            continue
        stacked = item.prepend_axis_num
        place, shape = item.global_offset[:stacked], item.global_shape[stacked:]
        digest = hashlib.md5(f"{seed} {item.key} {tuple(place)}".encode(), usedforsecurity=False).hexdigest()
        generator = torch.Generator().manual_seed(int(digest[:8], 16))
        whole = torch.randn(shape, generator=generator) * math.sqrt(2 / sum(shape[-2:]))
        offsets = item.global_offset[stacked:]
        part = whole[tuple(slice(o, o + n) for o, n in zip(offsets, item.local_shape, strict=True))]
        item.data.detach().copy_(part)
        drawn += 1
    return drawn


def _let_gradients_through(chunk: Any) -> None:
    """Let the embedding's output have a gradient where whole layers are recomputed.

    A checkpointed layer has gradients only if one of its inputs has: behind a frozen embedding, the adapters of the
    first stage would never train.
    """
    if chunk.config.recompute_granularity == "full" and chunk.pre_process:
        chunk.embedding.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
