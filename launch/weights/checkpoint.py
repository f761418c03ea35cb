"""A distributed checkpoint of Megatron-Core, written and read one tensor at a time: no model and no process group.

The format is torch's (torch.distributed.checkpoint), with the files that Megatron-Core and NeMo add to it.
"""

from __future__ import annotations

import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, SavePlan, SavePlanner
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from slipway.configs import Refusal
from slipway.launch.weights.rules import Piece
from slipway.recipes.runtime.checksums import wrong_files

# What NeMo stores of how it names tensors: layers stacked (``singleton_local_shards``), as these tables name them.
_CONTENT = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
_BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


def write(
    folder: Path,
    pieces: Iterable[Piece],
    dtype: Callable[[Piece], torch.dtype],
    make: Callable[[Piece], torch.Tensor],
) -> None:
    """Write the ``weights`` folder of a checkpoint.

    Args:
        dtype: of a piece; equal for all pieces of one key.
        make: reads a piece, when it is written; it is forgotten afterwards.
    """
    folder.mkdir(parents=True)
    planner = _Stream(list(pieces), dtype, make)
    writer = FileSystemWriter(folder, single_file_per_rank=True, thread_count=1)
    writer.set_up_storage_writer(True)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    plans, metadata = planner.create_global_plan([plan])
    plans = writer.prepare_global_plan(plans)
    writer.finish(metadata, [writer.write_data(plans[0], planner).wait()])
    torch.save({"content_metadata": _CONTENT, "state_dict": {}}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(_BACKEND))


class _Stream(SavePlanner):  # type: ignore[misc]
    """Plans every piece, and makes each when the writer asks for it."""

    def __init__(
        self,
        pieces: list[Piece],
        dtype: Callable[[Piece], torch.dtype],
        make: Callable[[Piece], torch.Tensor],
    ) -> None:
        self.make, self.dtype = make, dtype
        self.pieces: dict[tuple[str, tuple[int, ...]], Piece] = {}
        self.metadata: dict[str, Any] = {}
        for piece in pieces:
            self.pieces[piece.key, (*piece.index, *(0 for _ in piece.shape))] = piece
        self.objects = list(dict.fromkeys(name for piece in pieces for name in _extra_states(piece)))

    def set_up_planner(self, *args: Any, **kwargs: Any) -> None:
        """There is no state: it is made."""

    def create_local_plan(self) -> SavePlan:
        items = [self._item(piece, at) for (_, at), piece in self.pieces.items()]
        for name in self.objects:
            self.metadata[name] = BytesStorageMetadata()
            items.append(WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO))
        return SavePlan(items)

    def _item(self, piece: Piece, at: tuple[int, ...]) -> WriteItem:
        properties = TensorProperties(dtype=self.dtype(piece))
        whole = self.metadata.setdefault(
            piece.key, TensorStorageMetadata(properties, torch.Size((*piece.counts, *piece.shape)), [])
        )
        sizes = torch.Size((*(1 for _ in piece.index), *piece.shape))
        chunk = ChunkStorageMetadata(offsets=torch.Size(at), sizes=sizes)
        whole.chunks.append(chunk)
        return WriteItem(
            MetadataIndex(piece.key, chunk.offsets),
            WriteItemType.SHARD,
            tensor_data=TensorWriteData(chunk, properties, whole.size),
        )

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return all_plans, Metadata(self.metadata)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type is WriteItemType.BYTE_IO:
            return _nothing()
        piece = self.pieces[write_item.index.fqn, tuple(write_item.index.offset)]
        return self.make(piece).reshape(write_item.tensor_data.chunk.sizes)


def _extra_states(piece: Piece) -> Iterator[str]:
    """The names under which the checkpoint of a run has the quantization state of the module that holds a tensor.

    Transformer Engine's modules have one each, empty without fp8, and a load in NeMo's default strictness needs it.
    Names that no module asks for are ignored: which norms have a state depends on Transformer Engine's version.
    """
    module = piece.key.rpartition(".")[0]
    if not module.startswith(("module.decoder.", "module.mtp.")):
        return
    index, counts = piece.index or (0,), piece.counts or (1,)
    shard = f"shard_{'.'.join(map(str, index))}_{'.'.join(map(str, counts))}"
    yield f"{module}._extra_state/{shard}"
    if ".self_attention." in module:
        yield f"{module.partition('.self_attention.')[0]}.self_attention.core_attention._extra_state/{shard}"


def _nothing() -> io.BytesIO:
    """An empty quantization state, as Megatron-Core stores one."""
    stream = io.BytesIO()
    torch.save([torch.empty(0, dtype=torch.uint8)], stream)
    return stream


@dataclass(frozen=True)
class _Chunk:
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: Path
    start: int
    length: int


class Checkpoint:
    """The tensors of a checkpoint's ``weights`` folder, whatever layout wrote it.

    Raises:
        Refusal: it has another format, or a file that differs from its checksum.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "common.pt").is_file():
            raise Refusal(f"{folder} is not a checkpoint of the format torch_dist", "Give a run that NeMo 2.0 wrote.")
        for name, what in sorted(wrong_files(folder).items()):
            raise Refusal(
                f"{folder / name} {what}", "Restore it, or give an older checkpoint: slipway checkpoint verify."
            )
        metadata = FileSystemReader(str(folder)).read_metadata()
        self.tensors = {
            key: held
            for key, held in metadata.state_dict_metadata.items()
            if key.startswith("module.") and isinstance(held, TensorStorageMetadata)
        }
        self._places = {
            (index.fqn, tuple(index.offset)): place
            for index, place in metadata.storage_data.items()
            if index.fqn in self.tensors
        }
        self._chunks: dict[str, dict[tuple[int, ...], list[_Chunk]]] = {}

    def dtype(self, piece: Piece) -> torch.dtype:
        return self.tensors[piece.key].properties.dtype  # type: ignore[no-any-return]

    def check(self, pieces: Iterable[Piece]) -> None:
        """Compare names and shapes. The vocabulary may be padded, and nothing else may be larger or smaller.

        Raises:
            Refusal: the first difference.
        """
        expected = {piece.key: (*piece.counts, *piece.shape) for piece in pieces}
        for key in sorted(expected.keys() ^ self.tensors.keys()):
            what = "lacks" if key in expected else "also has"
            raise Refusal(f"{self.folder} {what} {key}, so it is not the model of its record", "Give another run.")
        for key, shape in expected.items():
            held = tuple(self.tensors[key].size)
            padded = key in ("module.embedding.word_embeddings.weight", "module.output_layer.weight")
            if held != shape and not (padded and held[0] >= shape[0] and held[1:] == shape[1:]):
                raise Refusal(f"{self.folder} has {key} of shape {held}, and its record says {shape}", "Give another.")

    def read(self, piece: Piece) -> torch.Tensor:
        """A piece; of a padded vocabulary, the rows that are no padding."""
        depth = len(piece.index)
        out: torch.Tensor | None = None
        filled = 0
        for chunk in self._of(piece.key, depth).get(piece.index, []):
            part = self._load(chunk)[tuple(i - o for i, o in zip(piece.index, chunk.offsets, strict=False))]
            offsets = chunk.offsets[depth:]
            part = part[tuple(slice(0, n - o) for n, o in zip(piece.shape, offsets, strict=True) if o < n)]
            if any(o >= n for n, o in zip(piece.shape, offsets, strict=True)):
                continue  # padding alone
            if tuple(part.shape) == piece.shape:
                return part
            if out is None:
                out = torch.empty(piece.shape, dtype=part.dtype)
            out[tuple(slice(o, o + n) for o, n in zip(offsets, part.shape, strict=True))] = part
            filled += part.numel()
        if out is None or filled != piece.elements:
            raise Refusal(f"{self.folder} holds only a part of {piece.key}", "Give another checkpoint.")
        return out

    def _of(self, key: str, depth: int) -> dict[tuple[int, ...], list[_Chunk]]:
        """The chunks of a tensor by what they hold of its first ``depth`` axes."""
        if key not in self._chunks:
            by_index: dict[tuple[int, ...], list[_Chunk]] = defaultdict(list)
            for held in self.tensors[key].chunks:
                place = self._places[key, tuple(held.offsets)]
                file = self.folder / place.relative_path
                chunk = _Chunk(tuple(held.offsets), tuple(held.sizes), file, place.offset, place.length)
                for index in _indices(chunk, depth):
                    by_index[index].append(chunk)
            self._chunks[key] = by_index
        return self._chunks[key]

    def _load(self, chunk: _Chunk) -> torch.Tensor:
        with chunk.file.open("rb") as f:
            f.seek(chunk.start)
            held = torch.load(io.BytesIO(f.read(chunk.length)), weights_only=True)
        assert isinstance(held, torch.Tensor) and held.numel() == math.prod(chunk.sizes), chunk
        return held


def _indices(chunk: _Chunk, depth: int) -> Iterator[tuple[int, ...]]:
    from itertools import product

    ranges = [range(o, o + n) for o, n in zip(chunk.offsets[:depth], chunk.sizes[:depth], strict=True)]
    yield from product(*ranges)
