"""Tokenize text into Megatron's .bin and .idx: in parallel, in bounded memory, resumable, and never a file that looks
complete and is not.

tests/launch/test_prepare.py reads the result with Megatron-Core's own reader and compares it, byte for byte, with the
output of Megatron-Core's own builder.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slipway.configs import Refusal
from slipway.launch.data import encoders, reading
from slipway.launch.data.documents import Format, Found, find
from slipway.launch.data.encoders import Encoder, Engine
from slipway.launch.data.index import token_dtype, write_index
from slipway.launch.data.parts import Encoded, Parts
from slipway.launch.data.reading import Lines, Piece, Unit, divide, pieces, texts_of
from slipway.launch.data.tokenizer import load_tokenizer, require_writable, tokenizer_file
from slipway.recipes.runtime.data_manifest import Corpus, Manifest, OfTokenizer, file_facts, manifest_file
from slipway.recipes.runtime.parent import die_with_parent

ENCODED_CHARACTERS = 1 << 20  # of text that the tokenizer gets at a time; its own objects are far larger than the text


@dataclass(frozen=True)
class Options:
    """How a corpus is read and tokenized.

    Attributes:
        field: of the text, in a line or a table.
        format: of every file; guessed if not given.
        append_eod: end each document with the tokenizer's end-of-document token.
        skip_bad: leave out documents that are not text instead of refusing them.
        workers: processes; one for each core by default.
    """

    field: str = "text"
    format: Format | None = None
    pattern: str = "*"
    append_eod: bool = True
    skip_bad: bool = False
    engine: Engine = Engine.AUTO
    workers: int | None = None


@dataclass(frozen=True)
class Prepared:
    """What was written.

    Attributes:
        skipped: documents that were left out.
        unigram_entropy: nats per token: the loss of a model that knows the frequencies of the tokens and nothing else.
        left_out: text files beside files of documents, which were not read.
    """

    prefix: str
    documents: int
    tokens: int
    skipped: int
    unigram_entropy: float
    engine: str
    sources: str
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, prefix: str, manifest: Manifest, found: Found) -> Prepared:
        corpus = manifest.corpus
        left_out = tuple(map(str, found.left_out))
        counts = (corpus.documents, corpus.tokens, corpus.skipped, corpus.unigram_entropy)
        return cls(prefix, *counts, manifest.engine, found.describe(), left_out)


@dataclass(frozen=True)
class _Job:
    """What every worker needs to know."""

    tokenizer: str
    options: Options
    engine: Engine
    end: int
    dtype: str
    parts: Parts


@dataclass(frozen=True)
class _Task:
    """A unit to read and tokenize, or one of its pieces, which has been read."""

    unit: Unit
    piece: Piece | None = None
    part: int = 0
    last: bool = False
    read_bytes: int = 0  # of the unit, up to the end of this piece


def prepare(
    inputs: Iterable[str],
    tokenizer: str,
    out: str,
    options: Options | None = None,
    *,
    command: str = "",
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Tokenize ``inputs`` into ``out``.bin and ``out``.idx, with a manifest beside them.

    If it is interrupted, the same command continues: finished parts are kept in ``out``.parts.

    Args:
        inputs: files of text, .jsonl, parquet or arrow, or folders of them.
        tokenizer: a folder that holds tokenizer.json, or that file.
        command: the command line, for the manifest.
        say: called with what was found, before the work.
        progress: called with the bytes on disk that are done and the total.

    Raises:
        Refusal: an output that exists, an input that is missing or damaged, or a full disk.
    """
    options = options or Options()
    found = find(inputs, options.pattern, options.format, options.field)
    loaded, end = load_tokenizer(tokenizer)
    engine, why = encoders.choose(tokenizer, options.engine)
    ids = max(loaded.get_vocab_size(), 1 + max(loaded.get_vocab().values()))
    dtype = token_dtype(loaded.get_vocab_size()) if ids <= 1 << 16 else "int32"
    parts = Parts(Path(out + ".parts"), _key(found, tokenizer, options))
    _require_new(out, parts)
    require_writable(parts.folder.parent)
    job = _Job(tokenizer, options, engine, end, dtype, parts)
    try:
        continued = parts.begin()
        engine_used = encoders.version(engine) + (f" ({why})" if why else "")
        say(f"{found.describe()}, field {options.field}, {engine_used}" + ", continued" * continued)
        _tokenize_all(divide(found.sources, options.field), job, progress)
        manifest = _finish(out, job, found, OfTokenizer.of(tokenizer_file(tokenizer), ids, end), command)
    except OSError as error:
        raise Refusal(
            f"{out} could not be written: {error.strerror}",
            "Free some space and run the same command again: finished parts are kept.",
        ) from None
    finally:
        parts.end()
    return Prepared.of(out, manifest, found)


def _require_new(out: str, parts: Parts) -> None:
    """Refuse outputs that exist, unless this very work was interrupted while it renamed them."""
    if parts.finishing.is_file() and parts.finishing.read_text() == parts.key:
        return
    for path in (Path(out + ".bin"), Path(out + ".idx"), manifest_file(out)):
        if path.exists():
            raise Refusal(f"{path} already exists", "Give another --out, or remove it.")


def _key(found: Found, tokenizer: str, options: Options) -> str:
    """A hash of everything that the tokens depend on."""
    key = hashlib.sha256(tokenizer_file(tokenizer).read_bytes())
    key.update(repr((options.field, options.append_eod, options.skip_bad, reading.BLOCK_BYTES)).encode())
    for source in found.sources:
        facts = (str(source.path.resolve()), source.format.value, source.size_bytes, source.path.stat().st_mtime_ns)
        key.update(repr(facts).encode())
    return key.hexdigest()


# Workers

_worker: tuple[Encoder, _Job] | None = None  # of this process


def _start_worker(job: _Job) -> None:
    """Load the tokenizer. The worker ends with its parent, however that ends, and with Ctrl-C."""
    global _worker
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = (encoders.load(job.tokenizer, job.engine), job)


def _tokenize(task: _Task) -> str:
    """Tokenize the parts of a task that are not finished. Returns the reason if it could not be done."""
    assert _worker is not None
    encoder, job = _worker
    parts = [(task.part, task.last, [task.piece])] if task.piece else _grouped(task.unit, job.options)
    try:
        for number, last, group in parts:
            if job.parts.found(task.unit.number, number) is None:
                job.parts.write(task.unit.number, number, last, _encoded(group, encoder, job))
    except Refusal as refusal:
        return refusal.sentence()
    except OSError as error:
        return f"a part could not be written: {error.strerror}"
    return ""


def _grouped(unit: Unit, options: Options) -> Iterator[tuple[int, bool, list[Piece]]]:
    """The pieces of a unit in groups of about a block: number, whether it is the last, and the pieces."""
    number, group, size = 0, list[Piece](), 0
    for part in unit.parts:
        for piece in pieces(part, options.field, options.skip_bad):
            if size >= reading.BLOCK_BYTES:
                yield number, False, group
                number, group, size = number + 1, [], 0
            group.append(piece)
            size += piece.size
    yield number, True, group


def _encoded(group: list[Piece], encoder: Encoder, job: _Job) -> Encoded:
    tokens, lengths, bad = [np.zeros(0, job.dtype)], [np.zeros(0, np.int32)], 0
    for piece in group:
        read = texts_of(piece, job.options.field, job.options.skip_bad)
        bad += read.bad
        for batch in _batches(read.texts):
            ids, counts = encoder.encode(batch)
            ids = ids.astype(job.dtype)
            if job.options.append_eod:
                filled = counts > 0
                ids = np.insert(ids, np.cumsum(counts)[filled], job.end)
                counts = counts + filled
            tokens.append(ids)
            lengths.append(counts.astype(np.int32))
    return Encoded(np.concatenate(tokens), np.concatenate(lengths), bad)


def _batches(texts: list[str]) -> Iterator[list[str]]:
    """``texts`` in lists of about :data:`ENCODED_CHARACTERS`."""
    start = size = 0
    for i, text in enumerate(texts, 1):
        size += len(text)
        if size >= ENCODED_CHARACTERS:
            yield texts[start:i]
            start, size = i, 0
    if start < len(texts):
        yield texts[start:]


# The parent


def _tokenize_all(units: list[Unit], job: _Job, progress: Callable[[int, int], None]) -> None:
    total = sum(unit.size_bytes for unit in units)
    workers = job.options.workers or os.cpu_count() or 1
    missing = [unit for unit in units if not job.parts.is_whole(unit.number)]
    done = total - sum(unit.size_bytes for unit in missing)
    progress(done, total)
    job.parts.join()
    if not missing:
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _start_worker, (job,))
    tasks = _tasks(missing, job, workers)
    pending: dict[Future[str], _Task] = {}
    try:
        while True:
            while len(pending) < workers + 2 and (task := next(tasks, None)):
                pending[pool.submit(_tokenize, task)] = task
            if not pending:
                break
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                task = pending.pop(future)
                if reason := future.result():
                    raise Refusal(reason.rstrip("."), "Finished parts are kept for the next try.")
                done += task.read_bytes if task.piece else task.unit.size_bytes
                progress(done, total)
            job.parts.join()
    except BrokenProcessPool:
        raise Refusal(
            "a worker was killed, as a system does that runs out of memory",
            "Run the same command again, with fewer --workers if memory is short: finished parts are kept.",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _tasks(units: list[Unit], job: _Job, workers: int) -> Iterator[_Task]:
    """The work in order. A large compressed file is read here and its pieces are sent, unless there is one a worker."""
    streams = sum(unit.is_stream for unit in units)
    for unit in units:
        if unit.is_stream and streams < workers:
            yield from _stream(unit, job)
        else:
            yield _Task(unit)
        streams -= unit.is_stream


def _stream(unit: Unit, job: _Job) -> Iterator[_Task]:
    """The pieces of a compressed file that are not tokenized yet."""
    position = reported = 0

    def read(count: int) -> None:
        nonlocal position
        position = count

    held: tuple[int, Piece] | None = None
    source = pieces(unit.parts[0], job.options.field, job.options.skip_bad, read)
    for number, piece in enumerate(source):
        if held and job.parts.found(unit.number, held[0]) is None:
            yield _Task(unit, held[1], held[0], False, position - reported)
            reported = position
        held = (number, piece)
    number, piece = held or (0, Lines(unit.parts[0].source.path, 0, b""))
    yield _Task(unit, piece, number, True, unit.size_bytes - reported)


def _finish(out: str, job: _Job, found: Found, tokenizer: OfTokenizer, command: str) -> Manifest:
    """Write the index and the manifest, and rename the three files when they are complete."""
    parts = job.parts
    joined = parts.joined
    data, index = Path(out + ".bin"), Path(out + ".idx")
    if not parts.finishing.is_file():
        parts.save()
        if not joined.token_bytes:
            shutil.rmtree(parts.folder)
            raise Refusal("the inputs hold no document")
        parts.finishing.write_text(parts.key)
    if parts.tokens.is_file():
        parts.tokens.replace(data)
    lengths = np.memmap(parts.lengths, np.int32, "r")
    temporary = parts.folder / "index"
    write_index(temporary, lengths, job.dtype)
    temporary.replace(index)
    share = joined.counts[joined.counts > 0] / joined.counts.sum()
    corpus = Corpus(
        documents=joined.documents,
        empty_documents=int(joined.documents - np.count_nonzero(lengths)),
        tokens=int(joined.counts.sum()),
        skipped=joined.bad,
        largest_id=len(joined.counts) - 1,
        unigram_entropy=float(-(share * np.log(share)).sum()),
        field=job.options.field,
        append_eod=job.options.append_eod,
        sources=len(found.sources),
        source_bytes=found.size_bytes,
        source_formats=found.describe(),
    )
    files = {path.suffix[1:]: file_facts(path) for path in (data, index)}
    manifest = Manifest(corpus, tokenizer, files, encoders.version(job.engine), command)
    manifest.write(out)
    shutil.rmtree(parts.folder)
    return manifest
