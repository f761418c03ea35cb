"""Trained adapters: merged into the weights of their base tensor by tensor, or as a folder of Hugging Face's PEFT.

An adapter adds ``alpha / rank * B A`` to a weight of Megatron-Core's: A is ``linear_in`` [rank, inputs], B is
``linear_out`` [outputs, rank]. DoRA (arXiv:2402.09353, equation 5) scales each row of the sum to the length in
``weight_magnitude``.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from slipway.configs import Adapter, Model, Refusal, Task
from slipway.launch.weights.checkpoint import Checkpoint
from slipway.launch.weights.rules import Piece

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # of PEFT
_IN, _OUT, _MAGNITUDE = "linear_in.weight", "linear_out.weight", "weight_magnitude"


class Adapted:
    """The weights of a base with an adapter; it is read like a checkpoint.

    Args:
        base: the weights that were frozen.
        adapter: the checkpoint of the adapter.
        task: its rank and alpha.
    """

    def __init__(self, base: Checkpoint, adapter: Checkpoint, task: Task) -> None:
        self.base, self.adapter, self.task = base, adapter, task

    @property
    def scale(self) -> float:
        return self.task.lora_alpha / self.task.lora_rank

    def dtype(self, piece: Piece) -> torch.dtype:
        return self.base.dtype(piece)

    def check(self, pieces: Iterable[Piece]) -> None:
        """Compare the base with the table, and the adapter with the base.

        Raises:
            Refusal: the first difference.
        """
        plan = list(pieces)
        self.base.check(plan)
        known = {self._part(piece, part).key for piece in plan for part in (_IN, _OUT, _MAGNITUDE)}
        unknown = sorted(self.adapter.tensors.keys() - known)
        if unknown:
            raise Refusal(
                f"{self.adapter.folder} has {unknown[0]}, an adapter of a layer that cannot be exported",
                "Train with task.lora_targets=[linear_qkv,linear_proj] to export.",
            )

    def read(self, piece: Piece) -> torch.Tensor:
        """A tensor with its adapter, computed in fp32, in the type of the base."""
        whole = self.base.read(piece)
        if not self.adapts(piece):
            return whole
        merged = whole.float() + self.scale * (self.matrix(piece, _OUT) @ self.matrix(piece, _IN))
        if self.task.adapter is Adapter.dora:
            merged *= (self.matrix(piece, _MAGNITUDE) / torch.linalg.norm(merged, dim=1)).unsqueeze(1)
        return merged.to(whole.dtype)

    def adapts(self, piece: Piece) -> bool:
        """Whether the tensor has an adapter."""
        return self._part(piece, _IN).key in self.adapter.tensors

    def matrix(self, piece: Piece, part: str) -> torch.Tensor:
        """A part of a tensor's adapter, in fp32."""
        return self.adapter.read(self._part(piece, part)).float()

    def _part(self, piece: Piece, part: str) -> Piece:
        """A part of a tensor's adapter, as a tensor of the checkpoint."""
        module = piece.key.removesuffix(".weight")
        outputs, inputs = piece.shape if len(piece.shape) == 2 else (0, 0)
        shapes = {_IN: (self.task.lora_rank, inputs), _OUT: (outputs, self.task.lora_rank), _MAGNITUDE: (outputs,)}
        return dataclasses.replace(piece, key=f"{module}.adapter.{part}", shape=shapes[part], parts=())


def tensors(adapted: Adapted, plan: list[Piece], model: Model) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of PEFT's file, in fp32.

    A fused projection has one A for all its parts, and PEFT has one for each: they are copies.
    """
    for piece in plan:
        if adapted.adapts(piece):
            yield from _tensors(adapted, piece, model)


def _tensors(adapted: Adapted, piece: Piece, model: Model) -> Iterator[tuple[str, torch.Tensor]]:
    split = piece.rule.fusion.split
    outs = split(adapted.matrix(piece, _OUT), model)
    dora = adapted.task.adapter is Adapter.dora
    magnitudes = split(adapted.matrix(piece, _MAGNITUDE), model) if dora else [None] * len(outs)
    shared = adapted.matrix(piece, _IN)
    for part, out, magnitude in zip(piece.parts, outs, magnitudes, strict=True):
        name = f"base_model.model.{part.name.removesuffix('.weight')}"
        yield f"{name}.lora_A.weight", shared
        yield f"{name}.lora_B.weight", out
        if magnitude is not None:
            yield f"{name}.lora_magnitude_vector.weight", magnitude


def write_peft(
    folder: Path, adapted: Adapted, plan: list[Piece], model: Model, dtype: torch.dtype | None, base: str
) -> list[torch.Tensor]:
    """Write the folder of PEFT.

    Args:
        dtype: of the tensors; None: fp32.
        base: the folder of the base's Hugging Face weights, or their name on the Hub; empty: unknown.

    Returns:
        The tensors that were written.
    """
    from safetensors.torch import save_file

    held = {name: tensor.to(dtype or torch.float32).contiguous() for name, tensor in tensors(adapted, plan, model)}
    held = {name: tensor.clone() for name, tensor in held.items()}  # copies do not share memory in a file
    save_file(held, folder / WEIGHTS, metadata={"format": "pt"})
    task = adapted.task
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": task.lora_rank,
        "lora_alpha": task.lora_alpha,
        "lora_dropout": task.lora_dropout,
        "target_modules": _modules(held, model),
        "use_dora": task.adapter is Adapter.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return list(held.values())


def _modules(names: Iterable[str], model: Model) -> list[str]:
    """The modules that have an adapter, by their last names where every layer has one."""
    modules = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in names}
    last = Counter(module.rpartition(".")[2] for module in modules)
    complete = all(count == model.num_layers for count in last.values())
    return sorted(last) if complete else sorted(modules)
