"""Tokenize text into Megatron's .bin and .idx: in parallel, resumable, and never a file that looks complete and is not.

tests/launch/test_prepare.py reads the result with Megatron-Core's own reader and compares it, byte for byte, with the
output of Megatron-Core's own builder.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slipway.configs import Refusal
from slipway.launch.data.documents import documents, expand
from slipway.launch.data.index import token_dtype, write_index
from slipway.launch.data.tokenizer import load_tokenizer, require_writable, tokenizer_file

SHARD_BYTES = 4 << 20  # of text; the unit of parallel work and of resuming


@dataclass(frozen=True)
class Prepared:
    """What was written.

    Attributes:
        skipped: files that were left out.
        unigram_entropy: nats per token: the loss of a model that knows the frequencies of the tokens and nothing else.
    """

    prefix: str
    documents: int
    tokens: int
    skipped: int
    unigram_entropy: float


@dataclass(frozen=True)
class _Settings:
    """What every worker needs to know."""

    tokenizer: str
    skip_bad: bool
    dtype: str
    parts: Path  # folder of the finished shards


@dataclass(frozen=True)
class _Shard:
    number: int
    files: list[Path]
    key: str  # hash of everything that its tokens depend on
    size_bytes: int

    def file(self, parts: Path) -> Path:
        return parts / f"{self.number}.{self.key}.npz"


def prepare(
    inputs: Iterable[str],
    tokenizer: str,
    out: str,
    *,
    pattern: str = "*",
    workers: int | None = None,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Tokenize ``inputs`` into ``out``.bin and ``out``.idx, with an end-of-document token after each document.

    If it is interrupted, the same command continues: finished shards are kept in ``out``.parts. The two files are
    renamed into place together, last.

    Args:
        inputs: text files, .jsonl files with a ``text`` field, or folders of them.
        tokenizer: a folder that holds tokenizer.json, or that file.
        workers: processes; one for each core by default.
        skip_bad: leave out files that are not UTF-8 instead of refusing them.
        progress: called with the bytes of text that are done and the total.

    Raises:
        Refusal: an output that exists, an input that is missing or not UTF-8, or a full disk.
    """
    for suffix in (".bin", ".idx"):
        if Path(out + suffix).exists():
            raise Refusal(f"{out}{suffix} already exists", "Give another --out, or remove it.")
    files = expand(inputs, pattern)
    loaded, _ = load_tokenizer(tokenizer)
    settings = _Settings(tokenizer, skip_bad, token_dtype(loaded.get_vocab_size()), Path(out + ".parts"))
    shards = _shards(files, settings)
    require_writable(settings.parts)
    try:
        _tokenize_all(shards, settings, workers or os.cpu_count() or 1, progress)
        result = _join(shards, settings, out)
    except OSError as error:
        raise Refusal(
            f"{out} could not be written: {error.strerror}",
            "Free some space and run the same command again: finished parts are kept.",
        ) from None
    shutil.rmtree(settings.parts)
    return result


def _shards(files: list[Path], settings: _Settings) -> list[_Shard]:
    """``files`` in order, in shards of about :data:`SHARD_BYTES`; a larger file is a shard of its own."""
    state = hashlib.sha256(tokenizer_file(settings.tokenizer).read_bytes() + bytes([settings.skip_bad])).hexdigest()
    shards: list[_Shard] = []
    batch: list[Path] = []
    size_bytes = 0
    for path in [*files, None]:
        if path is None or (batch and size_bytes + path.stat().st_size > SHARD_BYTES):
            facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in batch]
            key = hashlib.sha256((state + repr(facts)).encode()).hexdigest()[:16]
            shards.append(_Shard(len(shards), batch, key, size_bytes))
            batch, size_bytes = [], 0
        if path is not None:
            batch.append(path)
            size_bytes += path.stat().st_size
    return shards


_worker: tuple[Any, int, _Settings] | None = (
    None  # of this process: the tokenizer, its end-of-document id, the settings
)


def _start_worker(settings: _Settings) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer, end = load_tokenizer(settings.tokenizer)
    _worker = (tokenizer, end, settings)


def _tokenize(shard: _Shard) -> tuple[int, str]:
    """Tokenize one shard into its file. Returns its number, and the reason if it could not be done."""
    assert _worker is not None
    tokenizer, end, settings = _worker
    lengths: list[int] = []
    tokens: list[np.ndarray] = []
    skipped = 0
    for path in shard.files:
        try:
            for text in documents(path):
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                tokens.append(np.asarray([*ids, end], dtype=settings.dtype))
                lengths.append(len(ids) + 1)
        except Refusal as refusal:
            if not settings.skip_bad:
                return shard.number, refusal.sentence()
            skipped += 1
    target = shard.file(settings.parts)
    temporary = target.with_suffix(".tmp")
    with temporary.open("wb") as f:
        joined = np.concatenate(tokens) if tokens else np.zeros(0, settings.dtype)
        np.savez(f, tokens=joined, lengths=np.asarray(lengths, np.int32), skipped=skipped)
    temporary.replace(target)
    return shard.number, ""


def _tokenize_all(
    shards: list[_Shard], settings: _Settings, workers: int, progress: Callable[[int, int], None]
) -> None:
    total = sum(shard.size_bytes for shard in shards)
    missing = [shard for shard in shards if not shard.file(settings.parts).exists()]
    done = total - sum(shard.size_bytes for shard in missing)
    progress(done, total)
    processes = min(workers, max(len(missing), 1))
    context = multiprocessing.get_context("fork")
    with context.Pool(processes, initializer=_start_worker, initargs=(settings,)) as pool:
        for number, reason in pool.imap_unordered(_tokenize, missing):
            if reason:
                pool.terminate()
                raise Refusal(reason.rstrip("."), "Nothing was written; finished parts are kept for the next try.")
            done += shards[number].size_bytes
            progress(done, total)


def _join(shards: list[_Shard], settings: _Settings, out: str) -> Prepared:
    """Concatenate the shards, write the index, and rename both files only when both are complete."""
    lengths: list[np.ndarray] = []
    skipped = 0
    counts = np.zeros(0, np.int64)  # of each id
    data_tmp, index_tmp = Path(out + ".bin.tmp"), Path(out + ".idx.tmp")
    with data_tmp.open("wb") as data:
        for shard in shards:
            part = np.load(shard.file(settings.parts))
            tokens = part["tokens"]
            data.write(tokens.tobytes())
            lengths.append(part["lengths"])
            skipped += int(part["skipped"])
            longer = np.bincount(tokens, minlength=len(counts))
            longer[: len(counts)] += counts
            counts = longer
        data.flush()
        os.fsync(data.fileno())
    document_lengths = np.concatenate(lengths) if lengths else np.zeros(0, np.int32)
    if not len(document_lengths):
        data_tmp.unlink()
        raise Refusal("the inputs hold no document")
    write_index(index_tmp, document_lengths, settings.dtype)
    index_tmp.replace(out + ".idx")
    data_tmp.replace(out + ".bin")
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * np.log(share)).sum())
    return Prepared(out, len(document_lengths), int(counts.sum()), skipped, entropy)
