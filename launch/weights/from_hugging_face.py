"""``slipway weights import``: a folder of Hugging Face's as a base that training starts from (``run.base=``)."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from slipway.configs import Model, Refusal
from slipway.configs.record import record_of_model
from slipway.launch.weights import checkpoint
from slipway.launch.weights.config import CONFIG, checked_config, model_of, read_config, recognise
from slipway.launch.weights.family import Family, recipes_of
from slipway.launch.weights.folder import (
    GENERATION,
    HUGGING_FACE,
    TOKENIZER_FILES,
    Checksum,
    Clock,
    Converted,
    Progress,
    copy_files,
    downloaded,
    new_folder,
    peak_rss_gib,
)
from slipway.launch.weights.rules import Part, Piece, pieces
from slipway.launch.weights.safetensors import Folder
from slipway.recipes.runtime.run_files import BASE_RECORD

TYPES = (torch.bfloat16, torch.float16, torch.float32)  # of weights that are not quantized


def import_weights(source: Path, out: Path, progress: Progress = lambda done, total: None) -> Converted:
    """Write the weights of ``source`` as a distributed checkpoint, tensor by tensor, in the types that they have.

    ``out`` gets ``weights`` (the checkpoint), ``slipway/base.json`` (the model's facts) and ``huggingface``
    (config.json and the tokenizer). It appears complete, or not at all.

    Raises:
        Refusal: a family that is not known, a tensor that is missing, unknown, of a wrong shape or cut short, a folder
            that exists, or a disk that is too small.
    """
    clock = Clock()
    source = downloaded(source)
    held = read_config(source)
    family = recognise(held, source)
    config = checked_config(family, held, source)
    folder = Folder(source)
    model = family.adjust(model_of(family, config, source.resolve().name), folder.tensors)
    plan = list(pieces(family.rules(model), model))
    parts = _check(folder, plan, family, model)
    total = sum(folder.tensors[name].nbytes for name in parts)
    done, checksum = 0, Checksum()

    def make(piece: Piece) -> torch.Tensor:
        nonlocal done
        read = [folder.read(part.name, part.expert) for part in piece.parts]
        for part, tensor in zip(piece.parts, read, strict=True):
            checksum.add(part.name, part.expert, tensor)
        done += sum(tensor.nbytes for tensor in read)
        whole = piece.rule.fusion.join(read, model)
        progress(done, total)
        return whole.to(dtypes[piece.key])

    dtypes = _dtypes(folder, plan)
    with new_folder(out, total) as partial:
        checkpoint.write(partial / "weights", plan, lambda piece: dtypes[piece.key], make)
        (partial / HUGGING_FACE).mkdir()
        copy_files(source, partial / HUGGING_FACE, CONFIG, GENERATION, *TOKENIZER_FILES)
        record = partial / BASE_RECORD
        record.parent.mkdir()
        record.write_text(
            json.dumps(
                {"family": family.name, "source": str(source.resolve()), "model": record_of_model(model)}, indent=1
            )
        )
    recipes = tuple(recipes_of(model))
    return Converted(family.name, len(parts), total, clock.seconds, peak_rss_gib(), checksum.text, recipes)


def _check(folder: Folder, plan: list[Piece], family: Family, model: Model) -> set[str]:
    """The names of the tensors that are read, after comparing names and shapes with the table.

    Raises:
        Refusal: the first difference.
    """
    source = folder.path
    wanted: dict[str, Part] = {part.name: part for piece in plan for part in piece.parts}
    experts = {part.name: piece.counts[-1] for piece in plan for part in piece.parts if part.expert is not None}
    missing = sorted(wanted.keys() - folder.tensors.keys())
    if missing:
        raise Refusal(
            f"{source} lacks {_some(missing)}, which {family.architecture} has with this {CONFIG}",
            "Download the folder again, or give the model that belongs to its config.json.",
        )
    extra = sorted(name for name in folder.tensors.keys() - wanted.keys() if not family.ignored(name, model))
    if extra:
        raise Refusal(
            f"{source} has {_some(extra)}, which {family.architecture} does not have with this {CONFIG}",
            "Give the model that belongs to its config.json.",
        )
    for name, part in wanted.items():
        shape = part.shape if part.expert is None else (experts[name], *part.shape)
        if folder.tensors[name].shape != shape:
            raise Refusal(
                f"{source} has {name} of shape {folder.tensors[name].shape}, and its {CONFIG} says {shape}",
                "Give the model that belongs to its config.json.",
            )
        if folder.tensors[name].dtype not in TYPES:
            raise Refusal(f"{source} has {name} in {folder.tensors[name].dtype}", "Give the bf16 weights of the model.")
    return set(wanted)


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")


def _dtypes(folder: Folder, plan: list[Piece]) -> dict[str, torch.dtype]:
    """The type of each tensor of the checkpoint: one that holds the values of all its parts."""
    dtypes: dict[str, torch.dtype] = {}
    for piece in plan:
        for part in piece.parts:
            own = folder.tensors[part.name].dtype
            dtypes[piece.key] = torch.promote_types(dtypes.get(piece.key, own), own)
    return dtypes
