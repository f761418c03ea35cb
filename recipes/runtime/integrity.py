"""Checksums of checkpoints: taken by the writers, gathered with the index, and checked by all ranks before a resume.

Each writer hashes the file that it has just written, in its own process, while training goes on. The sums travel to the
first rank with what the writers say anyway, and are written before the index is.
"""

from __future__ import annotations

import functools
import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from nemo.lightning.resume import AdapterPath

from slipway.configs import Refusal
from slipway.recipes.runtime.checkpoint_files import held, nothing_whole
from slipway.recipes.runtime.checksums import SUMS, read_sums, shares, write_sums, wrong_files
from slipway.recipes.runtime.data_manifest import sha256_of
from slipway.recipes.runtime.run_files import DAMAGED

_log = logging.getLogger("nemo_logger")
_BY_RANK_0 = ("common.pt", ".metadata")


class _Hashing:
    """A queue of a writer's results, which adds the sum of the file to the first of them."""

    def __init__(self, queue: Any, path: str) -> None:
        self.queue = queue
        self.path = path

    def put(self, output: tuple[int, Any]) -> None:
        results = output[1]
        if isinstance(results, list) and results:
            object.__setattr__(results[0], "sha256", sha256_of(Path(self.path)))  # a frozen dataclass
        self.queue.put(output)


@functools.cache
def install() -> None:
    """Let Megatron-Core's writers of checkpoints write sums too."""
    write, finish = FileSystemWriterAsync.write_preloaded_data, FileSystemWriterAsync.finish

    @functools.wraps(write)
    def hashed(transforms: Any, *, write_bucket: Any, results_queue: Any, **options: Any) -> None:
        results = _Hashing(results_queue, write_bucket[0])
        write(transforms, write_bucket=write_bucket, results_queue=results, **options)

    @functools.wraps(finish)
    def finished(self: Any, metadata: Any, results: list[list[Any]]) -> None:
        folder = Path(self.checkpoint_dir)
        sums = {
            result.storage_data.relative_path: result.sha256
            for of_rank in results
            for result in of_rank
            if hasattr(result, "sha256")
        }
        write_sums(folder, sums)
        finish(self, metadata, results)
        write_sums(folder, sums | {name: sha256_of(folder / name) for name in _BY_RANK_0 if (folder / name).is_file()})

    shared = filesystem_async._get_write_results_queue

    def own_queue() -> Any:
        """Upstream gives all saves one queue: of two that overlap, each could take the other's offsets and sums."""
        return shared()._manager.Queue()

    filesystem_async._get_write_results_queue = own_queue
    FileSystemWriterAsync.write_preloaded_data = staticmethod(hashed)
    FileSystemWriterAsync.finish = finished


def check_before_load(trainer: pl.Trainer) -> None:
    """Let the strategy check a checkpoint against its sums before it loads it, and fall back to an older one.

    Each rank reads an equal share of the bytes. Weights of another run (``run.base``) have no older ones.
    """
    strategy: Any = trainer.strategy
    load = strategy.load_checkpoint

    @functools.wraps(load)
    def checked(checkpoint_path: Any, selective_restore: bool = False) -> Any:
        path = Path(checkpoint_path)
        own = path.parent if path.name == "weights" else path
        if selective_restore:
            for name, what in sorted(_damage(own).items()):
                raise Refusal(f"run.base={own} has {name}, which {what}", "Give another checkpoint, or restore it.")
        else:
            own = _whole(own)
        chosen = own / path.name if path.name == "weights" else own
        if base := getattr(checkpoint_path, "base_model_path", None):  # of an adapter, which is loaded after its base
            chosen = AdapterPath(chosen, base_model_path=base)
        return load(chosen, selective_restore)

    strategy.load_checkpoint = checked


def _whole(checkpoint: Path) -> Path:
    """The checkpoint, or the newest older one of its folder whose files have their sums.

    Raises:
        Refusal: no checkpoint of the folder is whole.
    """
    distrusted: dict[Path, str] = {}
    while wrong := _damage(checkpoint):
        name, what = min(wrong.items())
        distrusted[checkpoint] = f"has {name}, which {what}"
        _log.warning("passing over checkpoint %s: it %s", checkpoint.name, distrusted[checkpoint])
        found = held(checkpoint.parent, {path.name: why for path, why in distrusted.items()})
        if found.newest is None:
            raise nothing_whole(checkpoint.parent, found)
        checkpoint = found.newest
        _log.warning("resuming from %s, after step %d", checkpoint, found.step)
    for damaged in distrusted:
        _set_aside(damaged)
    return checkpoint


def _set_aside(checkpoint: Path) -> None:
    """Move a damaged checkpoint out of the way of the one that training will write at its step."""
    if torch.distributed.get_rank() == 0:
        aside = checkpoint.parents[1] / DAMAGED / f"{checkpoint.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        aside.parent.mkdir(exist_ok=True)
        checkpoint.rename(aside)
        _log.warning("moved %s to %s", checkpoint, aside)
    torch.distributed.barrier()


def _damage(checkpoint: Path) -> dict[str, str]:
    """What is wrong with the files of a checkpoint, found by all ranks together."""
    weights = checkpoint / "weights" if (checkpoint / "weights").is_dir() else checkpoint
    if not read_sums(weights):
        _log.warning("%s has no %s: it is loaded unchecked", checkpoint, SUMS)
        return {}
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    everyone: list[dict[str, str]] = [{}] * world
    torch.distributed.all_gather_object(everyone, wrong_files(weights, shares(weights, world)[rank]))
    return {name: what for found in everyone for name, what in found.items()}
