"""What a .bin/.idx pair holds: documents, lengths, ids, duplicates, and the first documents as text."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slipway.configs import Refusal
from slipway.launch.data.tokenizer import load_tokenizer
from slipway.recipes.runtime.data_check import HEADER_BYTES, check_prefix
from slipway.recipes.runtime.data_manifest import Manifest, file_facts, read_manifest

NUMPY_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}  # of Megatron's DType
CHUNK = 1 << 22  # tokens or sequences at a time
READ_WHOLE_TOKENS = 1 << 31  # of a larger corpus, a sample of evenly spaced chunks is read
COMPARED = 1_000_000  # sequences that are compared with each other, chosen by their content
PRINTED_TOKENS = 256  # of each document that is decoded
LONGEST_COUNTED = 1 << 20  # tokens: lengths above it are one bin of the quantiles


@dataclass(frozen=True)
class Lengths:
    """Tokens of a sequence; ``bins`` holds lower bound, upper bound (excluded) and number of sequences."""

    smallest: int
    median: int
    mean: float
    p90: int
    largest: int
    bins: list[tuple[int, int, int]]


@dataclass(frozen=True)
class Ids:
    """The ids that occur in ``read_tokens`` of the tokens."""

    smallest: int
    largest: int
    distinct: int
    unigram_entropy: float
    read_tokens: int


@dataclass(frozen=True)
class Duplicates:
    """Of the ``compared`` sequences, those that are copies of an earlier one, and their share of the tokens."""

    compared: int
    copies: int
    token_share: float


@dataclass(frozen=True)
class Inspection:
    """What a prefix holds.

    Attributes:
        sequences: what Megatron counts; a document has more than one if its sentences were split.
        ended: share of the sequences that end with the tokenizer's end-of-document token; None without a tokenizer.
        first: the first documents, decoded, or empty without a tokenizer.
        vocabulary: ids of the tokenizer; None without one.
    """

    prefix: str
    documents: int
    sequences: int
    tokens: int
    token_type: str
    lengths: Lengths
    ids: Ids
    duplicates: Duplicates
    ended: float | None
    first: list[str]
    vocabulary: int | None
    tokenizer: str
    manifest: Manifest | None


@dataclass(frozen=True)
class _Corpus:
    """The arrays of a prefix, mapped from its files."""

    tokens: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray  # in bytes
    bounds: np.ndarray  # of the documents, in sequences

    def sequence(self, i: int) -> np.ndarray:
        start = int(self.offsets[i]) // self.tokens.itemsize
        return self.tokens[start : start + int(self.lengths[i])]


def _opened(prefix: str) -> _Corpus:
    check_prefix(prefix)
    index = Path(f"{prefix}.idx")
    with index.open("rb") as file:
        header = file.read(HEADER_BYTES)
    sequences, documents = struct.unpack("<QQ", header[18:])
    if header[17] not in NUMPY_TYPES or NUMPY_TYPES[header[17]][-2] == "f":
        raise Refusal(f"{index} does not hold ids", "Give a prefix that slipway data prepare wrote.")
    at = HEADER_BYTES
    lengths = np.memmap(index, "<i4", "r", at, sequences)
    offsets = np.memmap(index, "<i8", "r", at + 4 * sequences, sequences)
    bounds = np.memmap(index, "<i8", "r", at + 12 * sequences, documents)
    return _Corpus(np.memmap(f"{prefix}.bin", NUMPY_TYPES[header[17]], "r"), lengths, offsets, bounds)


def inspect(
    prefix: str,
    tokenizer: str = "",
    documents: int = 3,
    *,
    verify: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """Read a prefix.

    Args:
        tokenizer: decodes the first ``documents``; by default the one that the manifest names, if it is here.
        verify: also read both files whole and compare their hashes with the manifest's.
        progress: called with the tokens that are read and their number.

    Raises:
        Refusal: files that are missing, damaged or not those of the manifest, or a tokenizer that cannot be read.
    """
    corpus = _opened(prefix)
    manifest = read_manifest(prefix)
    if verify:
        _verify(prefix, manifest)
    if not tokenizer and manifest and Path(manifest.tokenizer.path).is_file():
        tokenizer = manifest.tokenizer.path
    ids = _ids(corpus.tokens, progress)
    first: list[str] = []
    ended = vocabulary = None
    if tokenizer:
        loaded, end = load_tokenizer(tokenizer)
        vocabulary = max(loaded.get_vocab_size(), 1 + max(loaded.get_vocab().values()))
        ended = _ended(corpus, end)
        for bounds in zip(corpus.bounds[:documents], corpus.bounds[1 : documents + 1], strict=False):
            parts = [corpus.sequence(i) for i in range(*map(int, bounds))]
            row = np.concatenate(parts)[:PRINTED_TOKENS] if parts else []
            first.append(loaded.decode([int(token) for token in row], skip_special_tokens=False))
    return Inspection(
        prefix=prefix,
        documents=len(corpus.bounds) - 1,
        sequences=len(corpus.lengths),
        tokens=len(corpus.tokens),
        token_type=str(corpus.tokens.dtype),
        lengths=_lengths(corpus.lengths),
        ids=ids,
        duplicates=_duplicates(corpus),
        ended=ended,
        first=first,
        vocabulary=vocabulary,
        tokenizer=tokenizer,
        manifest=manifest,
    )


def _verify(prefix: str, manifest: Manifest | None) -> None:
    if manifest is None:
        raise Refusal(f"there is no manifest beside {prefix}", "Leave out --verify, or prepare the corpus again.")
    for name, facts in manifest.files.items():
        found = file_facts(Path(f"{prefix}.{name}"))
        if found != facts:
            raise Refusal(
                f"{prefix}.{name} is not the file that was prepared: its SHA-256 is {found.sha256[:12]}..., and the "
                f"manifest says {facts.sha256[:12]}...",
                "Copy the three files again, or prepare the corpus again.",
            )


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, CHUNK):
        yield slice(start, min(start + CHUNK, count))


def _lengths(lengths: np.ndarray) -> Lengths:
    counts = np.zeros(LONGEST_COUNTED + 1, np.int64)
    powers = np.zeros(32, np.int64)
    smallest, largest, total = int(lengths[0]), 0, 0
    for part in _chunks(len(lengths)):
        some = np.asarray(lengths[part], np.int64)
        counts += np.bincount(np.minimum(some, LONGEST_COUNTED), minlength=len(counts))
        powers += np.bincount(np.frexp(np.maximum(some, 1))[1] - 1, minlength=len(powers))
        smallest, largest = min(smallest, int(some.min())), max(largest, int(some.max()))
        total += int(some.sum())
    up_to = np.cumsum(counts)
    median, p90 = (int(np.searchsorted(up_to, share * len(lengths))) for share in (0.5, 0.9))
    used = np.flatnonzero(powers)
    bins = [(1 << i, 2 << i, int(powers[i])) for i in range(int(used[0]), int(used[-1]) + 1)]
    return Lengths(smallest, median, total / len(lengths), p90, largest, bins)


def _ids(tokens: np.ndarray, progress: Callable[[int, int], None]) -> Ids:
    parts = list(_chunks(len(tokens)))
    if len(tokens) > READ_WHOLE_TOKENS:
        parts = parts[:: -(-len(tokens) // READ_WHOLE_TOKENS)]
    total = sum(part.stop - part.start for part in parts)
    counts = np.zeros(0, np.int64)
    read = 0
    for part in parts:
        some = np.asarray(tokens[part], np.int64)
        if some.min() < 0:
            raise Refusal(f"the files hold the id {some.min()}, which is below 0", "Prepare the corpus again.")
        more = np.bincount(some, minlength=len(counts))
        more[: len(counts)] += counts
        counts, read = more, read + len(some)
        progress(read, total)
    found = np.flatnonzero(counts)
    share = counts[found] / counts.sum()
    entropy = float(-(share * np.log(share)).sum())
    return Ids(int(found[0]), int(found[-1]), len(found), entropy, read)


def _ended(corpus: _Corpus, end: int) -> float:
    """The share of the sequences that end with the token ``end``."""
    count = 0
    for part in _chunks(len(corpus.lengths)):
        lasts = corpus.offsets[part] // corpus.tokens.itemsize + corpus.lengths[part] - 1
        count += int(np.count_nonzero(corpus.tokens[lasts] == end))
    return count / len(corpus.lengths)


def _duplicates(corpus: _Corpus) -> Duplicates:
    """Compare sequences by their hash. Of many, those are compared whose beginnings fall into a sample.

    A sample by content holds all copies of a sequence or none, so that the share of copies is not biased.
    """
    every = -(-len(corpus.lengths) // COMPARED)
    seen: set[bytes] = set()
    copies = compared = copied_tokens = tokens = 0
    for i in _sampled(corpus, every):
        row = corpus.sequence(int(i))
        digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        compared += 1
        tokens += len(row)
        if digest in seen:
            copies += 1
            copied_tokens += len(row)
        seen.add(digest)
    return Duplicates(compared, copies, copied_tokens / tokens if tokens else 0.0)


def _sampled(corpus: _Corpus, every: int) -> Iterator[int]:
    """About one in ``every`` sequences, chosen by their length and their first, middle and last token."""
    for part in _chunks(len(corpus.lengths)):
        if every == 1:
            yield from range(part.start, part.stop)
            continue
        lengths = np.asarray(corpus.lengths[part], np.uint64)
        starts = np.asarray(corpus.offsets[part]) // corpus.tokens.itemsize
        mixed = lengths
        for place in (np.zeros_like(lengths), lengths // np.uint64(2), lengths - np.uint64(1)):
            token = np.asarray(corpus.tokens[starts + place.astype(np.int64)], np.uint64)
            mixed = (mixed ^ token) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        yield from (part.start + np.flatnonzero(mixed % np.uint64(every) == 0)).tolist()
