"""``slipway weights export``: a run's newest checkpoint, or imported weights, as a folder that transformers loads."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from slipway.configs import Adapter, Data, Model, Refusal, Spec, Task
from slipway.configs.errors import exit_on_refusal
from slipway.configs.files import parse_json
from slipway.configs.load import recorded
from slipway.launch.weights.adapters import Adapted, write_peft
from slipway.launch.weights.checkpoint import Checkpoint
from slipway.launch.weights.config import CONFIG, checked_config, config_of, model_of, read_config, recognise
from slipway.launch.weights.family import Family, differences, family_of
from slipway.launch.weights.folder import (
    GENERATION,
    HUGGING_FACE,
    TOKENIZER_FILES,
    Checksum,
    Clock,
    Converted,
    Progress,
    copy_files,
    new_folder,
    peak_rss_gib,
)
from slipway.launch.weights.rules import Piece, pieces
from slipway.launch.weights.safetensors import Planned, Writer
from slipway.recipes.runtime.base import model_of_base
from slipway.recipes.runtime.checkpoint_files import base_checkpoint, damage, held
from slipway.recipes.runtime.run_files import BASE_RECORD, RECORD

MERGED, PEFT = "merged", "peft"  # forms of an adapter
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        weights: the folder of the checkpoint's tensors.
        files: a folder with the tokenizer, and perhaps config.json and generation_config.json; None: there is none.
        tokenizer: the name of a tokenizer on the Hub, in place of the folder.
        config: the text of config.json, where the model is that of ``files``.
        task: of the run; ``base``: the weights that its adapter belongs to, where it trained one.
        origin: the folder that the base was imported from.
    """

    weights: Path
    model: Model
    family: Family
    files: Path | None
    tokenizer: str = ""
    config: dict[str, Any] | None = None
    task: Task = field(default_factory=Task)
    base: Path | None = None
    origin: str = ""

    def stored(self) -> Checkpoint | Adapted:
        """The tensors, with the adapter in them where there is one."""
        if self.base is None:
            return Checkpoint(self.weights)
        return Adapted(Checkpoint(self.base), Checkpoint(self.weights), self.task)


def export_weights(
    source: Path, out: Path, dtype: str = "", progress: Progress = lambda done, total: None, adapter: str = ""
) -> Converted:
    """Write the newest whole checkpoint of a run, or imported weights, for transformers, tensor by tensor.

    Args:
        source: the folder of a run, of one of its checkpoints, or of imported weights.
        out: the folder to write; it appears complete, or not at all.
        dtype: a key of :data:`DTYPES`; empty: the types of the checkpoint.
        adapter: of a run that trained one: ``merged`` into its base, which is the default, or ``peft``: by itself, for
            Hugging Face's PEFT.

    Raises:
        Refusal: nothing to export, a model that transformers does not have, a folder that exists, or a disk that is
            too small.
    """
    clock = Clock()
    if dtype and dtype not in DTYPES:
        raise Refusal(f"--dtype {dtype} is not legal", f"Use {', '.join(DTYPES)}, or none to keep the type.")
    what = read_source(source)
    if adapter and what.base is None:
        raise Refusal(f"--adapter {adapter}, and {source} trained no adapter", "Leave it out.")
    stored = what.stored()
    plan = list(pieces(what.family.rules(what.model), what.model))
    stored.check(plan)
    if adapter == PEFT and isinstance(stored, Adapted):
        return _export_peft(stored, plan, what, out, DTYPES.get(dtype), clock)
    tensors = _planned(plan, stored, DTYPES.get(dtype))
    total = sum(planned.nbytes for planned in tensors.values())
    done, checksum = 0, Checksum()
    with new_folder(out, total) as partial:
        with Writer(partial, tensors.values()) as writer:
            for piece in plan:
                whole = stored.read(piece)
                for part, tensor in zip(piece.parts, piece.rule.fusion.split(whole, what.model), strict=True):
                    made = tensor.to(tensors[part.name].dtype)
                    writer.write(part.name, made, part.expert)
                    checksum.add(part.name, part.expert, made)
                    done += made.nbytes
                progress(done, total)
        _write_files(partial, what, next(iter(tensors.values())).dtype)
    return Converted(what.family.name, len(tensors), total, clock.seconds, peak_rss_gib(), checksum.text)


def _export_peft(
    stored: Adapted, plan: list[Piece], what: Source, out: Path, dtype: torch.dtype | None, clock: Clock
) -> Converted:
    with new_folder(out, 0) as partial:
        tensors = write_peft(partial, stored, plan, what.model, dtype, what.origin)
        if what.files is not None:
            copy_files(what.files, partial, *TOKENIZER_FILES)
    return Converted(what.family.name, len(tensors), sum(t.nbytes for t in tensors), clock.seconds, peak_rss_gib())


def export_run(run_dir: str, out: str) -> None:
    """:func:`export_weights` as the task of a job: with plain arguments, and what it wrote in the job's log."""
    with exit_on_refusal():
        done = export_weights(Path(run_dir), Path(out))
    print(f"{out}: {done.family}, {done.tensors:,} tensors, {done.bytes:,} bytes")


def _planned(plan: list[Piece], stored: Checkpoint | Adapted, dtype: torch.dtype | None) -> dict[str, Planned]:
    """Every tensor that is written, in the order of the table."""
    tensors: dict[str, Planned] = {}
    for piece in plan:
        for part in piece.parts:
            shape = part.shape if part.expert is None else (piece.counts[-1], *part.shape)
            own = stored.dtype(piece)
            tensors[part.name] = Planned(part.name, own if piece.rule.keeps_type else dtype or own, shape)
    return tensors


def read_source(source: Path) -> Source:
    """What ``source`` holds.

    Raises:
        Refusal: no weights, or no record of their model.
    """
    checkpoint = _checkpoint(source)
    if (checkpoint / BASE_RECORD).is_file():
        return _imported(checkpoint)
    record = checkpoint.parents[1] / RECORD
    if not record.is_file():
        raise Refusal(f"{checkpoint} belongs to no run", f"Give a checkpoint of a run that holds {RECORD}.")
    return _trained(checkpoint, record)


def _checkpoint(source: Path) -> Path:
    """The checkpoint that ``source`` is, or the newest whole one of that run."""
    if (source / "weights").is_dir():
        if wrong := damage(source):
            raise Refusal(f"{source} cannot be read: it {wrong}", "Restore it, or give another checkpoint.")
        return source
    if not (source / RECORD).is_file():
        raise Refusal(
            f"{source} holds no run and no imported weights",
            f"Give a folder that holds {RECORD}, or that slipway weights import wrote.",
        )
    found = held(source / "checkpoints")
    if found.newest is None:
        raise Refusal(f"{source} holds no whole checkpoint", "Train it further, or restore one.")
    return found.newest


def _imported(base: Path) -> Source:
    model = model_of_base(base)
    files = base / HUGGING_FACE
    config = read_config(files)
    return Source(base / "weights", model, recognise(config, files), files, config=config)


def _trained(checkpoint: Path, record: Path) -> Source:
    spec = recorded(record)[0]
    if spec.layout.fsdp.value != "none":
        raise Refusal(f"{checkpoint} is of Megatron-FSDP, which cannot be exported", "Train with layout.fsdp=none.")
    files, name = _tokenizer(spec)
    family = family_of(spec.model)
    if not spec.run.base:
        return Source(checkpoint / "weights", spec.model, family, files, name)
    base = base_checkpoint(Path(spec.run.base))
    return Source(
        checkpoint / "weights",
        spec.model,
        family,
        files,
        name,
        config=_config_of_base(base, spec.model),
        task=spec.task,
        base=None if spec.task.adapter is Adapter.none else base / "weights",
        origin=_origin(base),
    )


def data_of_run(source: Path) -> Data:
    """What a run trained on; without one, instructions as they usually are."""
    checkpoint = _checkpoint(source).resolve()
    record = checkpoint.parents[1] / RECORD
    if (checkpoint / BASE_RECORD).is_file() or not record.is_file():
        return Data(name="instructions")
    return recorded(record)[0].data


def _config_of_base(base: Path, model: Model) -> dict[str, Any] | None:
    """The config.json of imported weights, where the run's model computes what it says."""
    files = base / HUGGING_FACE
    if not (files / CONFIG).is_file():
        return None
    config = read_config(files)
    family = recognise(config, files)
    return None if differences(model, model_of(family, checked_config(family, config, files))) else config


def _origin(base: Path) -> str:
    """The folder that weights were imported from; empty where they were not, or the folder is unknown."""
    record = base / BASE_RECORD
    return str(parse_json(record).get("source", "")) if record.is_file() else ""


def _tokenizer(spec: Spec) -> tuple[Path | None, str]:
    """The folder of a run's tokenizer, or its name on the Hub."""
    given, base = Path(spec.data.tokenizer), Path(spec.run.base) / HUGGING_FACE
    if spec.data.tokenizer and given.exists():
        return (given.parent if given.is_file() else given), ""
    if spec.data.tokenizer:
        return None, spec.data.tokenizer
    return (base if spec.run.base and base.is_dir() else None), ""


def _write_files(target: Path, what: Source, dtype: torch.dtype) -> None:
    """Write config.json, generation_config.json and the tokenizer."""
    if what.files is not None:
        copy_files(what.files, target, GENERATION, *TOKENIZER_FILES)
    name = str(dtype).removeprefix("torch.")
    if what.config is not None:
        key = "dtype" if "dtype" in what.config else "torch_dtype"
        if what.config.get(key) == name and what.files is not None:
            copy_files(what.files, target, CONFIG)
        else:
            (target / CONFIG).write_text(json.dumps(what.config | {key: name}, indent=2, sort_keys=True) + "\n")
        return
    made = config_of(what.family, what.model, dtype=name, **_special_tokens(what, target))
    made.to_json_file(target / CONFIG)
    if not (target / GENERATION).is_file():
        from transformers import GenerationConfig

        GenerationConfig.from_model_config(made).to_json_file(target / GENERATION)


def _special_tokens(what: Source, target: Path) -> dict[str, Any]:
    """The ids of the first, last and padding tokens: those of the model that the folder is of, or the tokenizer's.

    A tokenizer of the Hub is written to ``target``.
    """
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    none: dict[str, Any] = dict.fromkeys(keys)  # not left out: transformers would put ids of its own
    if what.files is not None and (what.files / CONFIG).is_file():
        return none | {key: value for key, value in read_config(what.files).items() if key in keys}
    if what.files is None and not what.tokenizer:
        return none
    from transformers import AutoTokenizer

    name = what.tokenizer or str(what.files)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise Refusal(
            f"the run's tokenizer {name} cannot be read: {error}", "Make it available, and export again."
        ) from None
    if what.files is None:
        tokenizer.save_pretrained(target)
    return {key: getattr(tokenizer, key) for key in keys}
