"""The manifest beside a .bin/.idx pair: what the corpus holds, and with which tokenizer. No torch, no NeMo."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slipway.configs import Refusal

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What was tokenized.

    Attributes:
        documents: the empty ones included, which have no tokens.
        skipped: documents that were left out because they are not text.
        largest_id: of the tokens.
        unigram_entropy: nats per token.
        sources: number of files.
    """

    documents: int
    empty_documents: int
    tokens: int
    skipped: int
    largest_id: int
    unigram_entropy: float
    field: str
    append_eod: bool
    sources: int
    source_bytes: int
    source_formats: str


@dataclass(frozen=True)
class OfTokenizer:
    """A tokenizer: its file, the file's SHA-256, one more than its largest id, and its end-of-document id."""

    path: str
    sha256: str
    ids: int
    end: int

    @classmethod
    def of(cls, file: Path, ids: int, end: int) -> OfTokenizer:
        return cls(str(file.resolve()), sha256_of(file), ids, end)


@dataclass(frozen=True)
class FileFacts:
    """The size and the SHA-256 of a file."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What ``PREFIX.manifest.json`` says; ``files`` has the keys bin and idx."""

    corpus: Corpus
    tokenizer: OfTokenizer
    files: dict[str, FileFacts]
    engine: str
    command: str

    def write(self, prefix: str) -> None:
        """Write it atomically."""
        path = manifest_file(prefix)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n")
        temporary.replace(path)


def manifest_file(prefix: str) -> Path:
    """Where the manifest of a prefix lies."""
    return Path(f"{prefix}.manifest.json")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_facts(path: Path) -> FileFacts:
    """Read the size and the hash of a file."""
    return FileFacts(path.stat().st_size, sha256_of(path))


def read_manifest(prefix: str) -> Manifest | None:
    """The manifest of a prefix, or None where there is none.

    Raises:
        Refusal: it is not such a manifest.
    """
    path = manifest_file(prefix)
    if not path.is_file():
        return None
    try:
        read = json.loads(path.read_text())
        files = {name: FileFacts(**facts) for name, facts in read["files"].items()}
        manifest = Manifest(
            Corpus(**read["corpus"]), OfTokenizer(**read["tokenizer"]), files, read["engine"], read["command"]
        )
        if read["version"] != VERSION or not _whole(manifest):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refusal(
            f"{path} is not a manifest of slipway data prepare", "Remove it to train without its checks."
        ) from None
    return manifest


def _whole(manifest: Manifest) -> bool:
    """Whether the values that are used have the types that they should have."""
    numbers: list[Any] = [manifest.corpus.largest_id, manifest.tokenizer.ids]
    numbers += [manifest.files[name].size_bytes for name in ("bin", "idx")]
    return all(type(number) is int and number >= 0 for number in numbers)


def check_manifest(prefix: str, vocab_size: int, tokenizer: str) -> None:
    """Refuse files that are not those of the manifest, where there is one, and a run that cannot read their tokens.

    Args:
        vocab_size: of the model.
        tokenizer: of the run: a folder or a name; empty for none.

    Raises:
        Refusal: a size that differs, an id beyond the model's embedding, or another tokenizer.
    """
    manifest = read_manifest(prefix)
    if manifest is None:
        return
    for name, facts in manifest.files.items():
        size = Path(f"{prefix}.{name}").stat().st_size
        if size != facts.size_bytes:
            raise Refusal(
                f"{prefix}.{name} has {size:,} bytes, and {manifest_file(prefix)} says {facts.size_bytes:,}",
                "Copy the three files of one preparation, or prepare the corpus again.",
            )
    if manifest.corpus.largest_id >= vocab_size:
        raise Refusal(
            f"{prefix} holds the id {manifest.corpus.largest_id:,}, and the model has an embedding of {vocab_size:,}",
            "Prepare the corpus with the model's tokenizer, or set model.vocab_size.",
        )
    file = Path(tokenizer) / "tokenizer.json" if Path(tokenizer).is_dir() else Path(tokenizer)
    if tokenizer and file.is_file() and sha256_of(file) != manifest.tokenizer.sha256:
        raise Refusal(
            f"{prefix} was tokenized with {manifest.tokenizer.path}, and data.tokenizer={tokenizer} is another",
            f"Give the tokenizer of the corpus, or remove {manifest_file(prefix)} if both give the same ids.",
        )
