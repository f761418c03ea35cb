"""Text to Megatron .bin/.idx: streamed, parallel over cores, resumable, and never a file that looks whole and is not.

The index format is megatron.core.datasets.indexed_dataset's; tests/launch/test_prepare.py reads the result with Megatron's own
reader and compares it byte for byte with Megatron's own builder. Needs ``tokenizers`` and NumPy only.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slipway.configs import Refusal

SHARD_BYTES = 4 << 20  # of text: the unit of parallel work and of resuming
END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"


@dataclass(frozen=True)
class Prepared:
    """What was written. ``unigram_entropy`` is in nats per token: the loss of a model that knows token frequencies only."""

    prefix: str
    documents: int
    tokens: int
    skipped: int
    unigram_entropy: float


def expand(inputs: Iterable[str], pattern: str = "*") -> list[Path]:
    """Files of ``inputs``; folders are walked in sorted order for names that match ``pattern``.

    Raises:
        Refusal: an input that does not exist or that holds no file.
    """
    out: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            out += sorted(p for p in path.rglob(pattern) if p.is_file() and not _hidden(p.relative_to(path)))
        elif path.is_file():
            out.append(path)
        else:
            raise Refusal(f"there is no file or folder {name}")
    if not out:
        raise Refusal("the inputs hold no file", "Give text files, .jsonl files with a text field, or folders of them.")
    return out


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def documents(path: Path) -> Iterator[str]:
    """The documents of one file: each line's ``text`` of a .jsonl, else the whole file.

    Raises:
        Refusal: a byte that is not UTF-8, with file and offset; a line that is not JSON, with its number.
    """
    if path.suffix == ".jsonl":
        offset = 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                text = _decode(line, path, offset)
                offset += len(line)
                if not text.strip():
                    continue
                try:
                    yield json.loads(text)["text"]
                except (ValueError, KeyError, TypeError):
                    raise Refusal(f"{path} line {number} is not a JSON object with a text field") from None
    else:
        yield _decode(path.read_bytes(), path, 0)


def _decode(data: bytes, path: Path, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(
            f"{path} is not UTF-8 at byte {offset + error.start}",
            "Mend the file, leave it out, or pass --skip-bad to leave such files out.",
        ) from None


def train_tokenizer(
    inputs: Iterable[str], out: Path, vocab_size: int, *, pattern: str = "*", skip_bad: bool = False
) -> int:
    """Train a byte-level BPE (arXiv:1508.07909) and write it as Hugging Face tokenizers and transformers read it.

    Returns the number of ids.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 258:
        raise Refusal(
            f"a byte-level vocabulary of {vocab_size} cannot hold the 256 bytes", "Use --vocab-size 512 or more."
        )
    if (out / "tokenizer.json").exists():
        raise Refusal(f"{out} already holds a tokenizer", "Give another --out, or remove it.")
    files = expand(inputs, pattern)

    def texts() -> Iterator[str]:
        for path in files:
            try:
                yield from documents(path)
            except Refusal:
                if not skip_bad:
                    raise

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    _writable(partial)
    tokenizer.save(str(partial / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "pad_token": PADDING,
        "model_max_length": 1 << 20,
    }
    (partial / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    if out.exists():
        out.rmdir()
    partial.replace(out)
    return int(tokenizer.get_vocab_size())


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"{folder} cannot be made: {error.strerror}", "Give an --out that you may write to.") from None


def load_tokenizer(folder: str) -> tuple[Any, int]:
    """The tokenizer of a folder and its end-of-document id."""
    from tokenizers import Tokenizer

    path = Path(folder)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise Refusal(
            f"there is no tokenizer at {folder}", "Train one with: slipway data tokenizer FILES... --out FOLDER"
        )
    tokenizer = Tokenizer.from_file(str(path))
    settings = path.with_name("tokenizer_config.json")
    names = [END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>"]
    if settings.is_file():
        eos = json.loads(settings.read_text()).get("eos_token")
        names.insert(0, eos["content"] if isinstance(eos, dict) else eos)
    for name in names:
        end = tokenizer.token_to_id(name) if name else None
        if end is not None:
            return tokenizer, end
    raise Refusal(
        f"the tokenizer {folder} names no end-of-document token", "Add eos_token to its tokenizer_config.json."
    )


@dataclass(frozen=True)
class _Shard:
    number: int
    files: list[Path]
    key: str  # of everything the shard's tokens depend on
    size: int


_worker: tuple[Any, int, bool] | None = None


def _start_worker(tokenizer: str, skip_bad: bool) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    loaded, end = load_tokenizer(tokenizer)
    _worker = (loaded, end, skip_bad)


def _tokenize(task: tuple[_Shard, Path, str]) -> tuple[int, str]:
    """Tokenize one shard into its own files. Returns its number and the fault, if there was one."""
    shard, folder, dtype = task
    assert _worker is not None
    tokenizer, end, skip_bad = _worker
    lengths: list[int] = []
    tokens: list[np.ndarray] = []
    skipped = 0
    for path in shard.files:
        try:
            for text in documents(path):
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                tokens.append(np.asarray([*ids, end], dtype=dtype))
                lengths.append(len(ids) + 1)
        except Refusal as fault:
            if not skip_bad:
                return shard.number, fault.sentence()
            skipped += 1
    target = folder / f"{shard.number}.{shard.key}.npz"
    temporary = target.with_suffix(".tmp")
    with temporary.open("wb") as f:
        flat = np.concatenate(tokens) if tokens else np.zeros(0, dtype)
        np.savez(f, tokens=flat, lengths=np.asarray(lengths, np.int32), skipped=skipped)
    temporary.replace(target)
    return shard.number, ""


def _shards(files: list[Path], tokenizer: str, skip_bad: bool) -> list[_Shard]:
    state = hashlib.sha256(Path(_tokenizer_file(tokenizer)).read_bytes() + bytes([skip_bad])).hexdigest()
    out: list[_Shard] = []
    batch: list[Path] = []
    size = 0
    for path in [*files, None]:
        if path is None or (batch and size + path.stat().st_size > SHARD_BYTES):
            facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in batch]
            key = hashlib.sha256((state + repr(facts)).encode()).hexdigest()[:16]
            out.append(_Shard(len(out), batch, key, size))
            batch, size = [], 0
        if path is not None:
            batch.append(path)
            size += path.stat().st_size
    return out


def _tokenizer_file(folder: str) -> str:
    path = Path(folder)
    return str(path / "tokenizer.json" if path.is_dir() else path)


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
    """Tokenize ``inputs`` into ``out``.bin and ``out``.idx, one end-of-document token after each document.

    Interrupted, it goes on where it was: finished shards wait in ``out``.parts. The two files appear together, last.

    Args:
        inputs: text files, .jsonl files with a ``text`` field, or folders of them.
        progress: called with the bytes of text done and the total.

    Raises:
        Refusal: an output that exists, an input that is missing or not UTF-8, a full disk.
    """
    for suffix in (".bin", ".idx"):
        if Path(out + suffix).exists():
            raise Refusal(f"{out}{suffix} already exists", "Give another --out, or remove it.")
    files = expand(inputs, pattern)
    loaded, _ = load_tokenizer(tokenizer)
    dtype = "uint16" if loaded.get_vocab_size() <= 65500 else "int32"
    shards = _shards(files, tokenizer, skip_bad)
    parts = Path(out + ".parts")
    _writable(parts)
    try:
        _tokenize_all(shards, parts, tokenizer, skip_bad, dtype, workers or os.cpu_count() or 1, progress)
        result = _join(shards, parts, out, dtype)
    except OSError as error:
        raise Refusal(
            f"{out} could not be written: {error.strerror}",
            "Make room and run the same command again; finished parts are kept.",
        ) from None
    shutil.rmtree(parts)
    return result


def _tokenize_all(
    shards: list[_Shard],
    parts: Path,
    tokenizer: str,
    skip_bad: bool,
    dtype: str,
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    total = sum(s.size for s in shards)
    todo = [s for s in shards if not (parts / f"{s.number}.{s.key}.npz").exists()]
    done = total - sum(s.size for s in todo)
    progress(done, total)
    sizes = {s.number: s.size for s in shards}
    with multiprocessing.get_context("fork").Pool(
        min(workers, max(len(todo), 1)), initializer=_start_worker, initargs=(tokenizer, skip_bad)
    ) as pool:
        for number, fault in pool.imap_unordered(_tokenize, [(s, parts, dtype) for s in todo]):
            if fault:
                pool.terminate()
                raise Refusal(fault.rstrip("."), "Nothing was written; finished parts are kept for the next try.")
            done += sizes[number]
            progress(done, total)


def _join(shards: list[_Shard], parts: Path, out: str, dtype: str) -> Prepared:
    """Concatenate the shards and write the index beside; rename both only when both are whole."""
    lengths: list[np.ndarray] = []
    skipped = 0
    counts = np.zeros(0, np.int64)
    data_tmp, index_tmp = Path(out + ".bin.tmp"), Path(out + ".idx.tmp")
    with data_tmp.open("wb") as data:
        for shard in shards:
            part = np.load(parts / f"{shard.number}.{shard.key}.npz")
            tokens = part["tokens"]
            data.write(tokens.tobytes())
            lengths.append(part["lengths"])
            skipped += int(part["skipped"])
            seen = np.bincount(tokens, minlength=len(counts))
            seen[: len(counts)] += counts
            counts = seen
        data.flush()
        os.fsync(data.fileno())
    sequence_lengths = np.concatenate(lengths) if lengths else np.zeros(0, np.int32)
    if not len(sequence_lengths):
        data_tmp.unlink()
        raise Refusal("the inputs hold no document")
    write_index(index_tmp, sequence_lengths, dtype)
    index_tmp.replace(out + ".idx")
    data_tmp.replace(out + ".bin")
    share = counts[counts > 0] / counts.sum()
    return Prepared(out, len(sequence_lengths), int(counts.sum()), skipped, float(-(share * np.log(share)).sum()))


def write_index(path: Path, lengths: np.ndarray, dtype: str) -> None:
    """Megatron's index of one-sequence documents: header, lengths (int32), byte offsets (int64), document bounds (int64)."""
    item = np.dtype(dtype).itemsize
    code = {"int32": 4, "uint16": 8}[dtype]
    pointers = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1].astype(np.int64) * item, out=pointers[1:])
    with path.open("wb") as f:
        f.write(b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", code))
        f.write(struct.pack("<Q", len(lengths)) + struct.pack("<Q", len(lengths) + 1))
        f.write(lengths.astype(np.int32).tobytes() + pointers.tobytes())
        f.write(np.arange(len(lengths) + 1, dtype=np.int64).tobytes())
        f.flush()
        os.fsync(f.fileno())
