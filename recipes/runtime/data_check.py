"""Whether a Megatron .bin/.idx prefix is whole and a tokenizer fits, read from their own headers. No torch, no NeMo."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from slipway.configs import Refusal

MAGIC = b"MMIDIDX\x00\x00"
HEADER_BYTES = 34  # magic 9, version 8, dtype code 1, sequence count 8, document count 8
DTYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 8, 7: 4, 8: 2}  # megatron.core.datasets.indexed_dataset.DType


def check_prefix(prefix: str) -> None:
    """Refuse a prefix whose files are missing, cut short, or do not belong together.

    Raises:
        Refusal: which file, what is wrong, and the command that makes it.
    """
    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    remake = f"Make it with: slipway data prepare FILES... --tokenizer FOLDER --out {prefix}"
    for path in (index, data):
        if not path.is_file():
            raise Refusal(f"there is no {path}", remake)
    with index.open("rb") as f:
        header = f.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise Refusal(f"{index} is not a Megatron index", remake)
    code, sequences, documents = header[17], *struct.unpack("<QQ", header[18:34])
    if code not in DTYPE_BYTES:
        raise Refusal(f"{index} is not a Megatron index: it names token type {code}", remake)
    expected = HEADER_BYTES + sequences * (4 + 8) + documents * 8
    if index.stat().st_size != expected:
        raise Refusal(
            f"{index} is truncated: {index.stat().st_size} bytes where its header promises {expected}", remake
        )
    if not sequences:
        raise Refusal(f"{index} holds no document", remake)
    with index.open("rb") as f:
        f.seek(HEADER_BYTES + (sequences - 1) * 4)
        (last_length,) = struct.unpack("<i", f.read(4))
        f.seek(HEADER_BYTES + sequences * 4 + (sequences - 1) * 8)
        (last_pointer,) = struct.unpack("<q", f.read(8))
    tokens_end = last_pointer + last_length * DTYPE_BYTES[code]
    if data.stat().st_size != tokens_end:
        raise Refusal(f"{data} is truncated: {data.stat().st_size} bytes where its index promises {tokens_end}", remake)


def check_split(prefix: str, split: str) -> None:
    """Refuse a split that leaves a part without documents: Megatron-Core would search for its tokens without end.

    Args:
        split: weights of training, validation and test, as 900,50,50; documents are dealt out as Megatron-Core does,
        by rounding.
    """
    try:
        weights = [float(w) for w in split.split(",")]
        if len(weights) != 3 or min(weights) < 0 or not sum(weights):
            raise ValueError
    except ValueError:
        raise Refusal(f"data.split={split} is not legal", "Give three weights, as 900,50,50.") from None
    with Path(f"{prefix}.idx").open("rb") as f:
        header = f.read(HEADER_BYTES)
    (sequences,) = struct.unpack("<Q", header[18:26])
    begin = 0.0
    for part, weight in zip(("training", "validation", "test"), weights, strict=True):
        end = begin + weight / sum(weights)
        if weight and round(end * sequences) <= round(begin * sequences):
            raise Refusal(
                f"{prefix}.idx holds {sequences} documents, and data.split={split} leaves none for {part}",
                "Prepare more documents, or give 'data.split=\"1,0,0\"' to train on all of them.",
            )
        begin = end


def tokens_in(prefix: str) -> int:
    """Tokens of a prefix that :func:`check_prefix` accepts: the length of its data in tokens, from its index.

    Raises:
        Refusal: as :func:`check_prefix`.
    """
    check_prefix(prefix)
    with Path(f"{prefix}.idx").open("rb") as f:
        code = f.read(HEADER_BYTES)[17]
    return Path(f"{prefix}.bin").stat().st_size // DTYPE_BYTES[code]


def tokenizer_ids(folder: str) -> int:
    """Number of ids that a Hugging Face tokenizer makes, added tokens included.

    Raises:
        Refusal: there is no tokenizer in ``folder``, or it cannot be read.
    """
    path = Path(folder)
    if path.suffix != ".json" and path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise Refusal(
            f"there is no tokenizer at {folder}", "Train one with: slipway data tokenizer FILES... --out FOLDER"
        )
    try:
        parsed = json.loads(path.read_text())
        vocabulary = parsed["model"]["vocab"]
        size = len(vocabulary) if isinstance(vocabulary, list) else 1 + max(vocabulary.values())
        size = int(max([size, *(t["id"] + 1 for t in parsed.get("added_tokens", []))]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refusal(
            f"{path} is not a Hugging Face tokenizers file", "Give the folder that holds tokenizer.json."
        ) from None
    return size


def check_tokenizer(folder: str, vocab_size: int, recipe: str) -> None:
    """Refuse a tokenizer that makes ids the model's embedding does not have."""
    size = tokenizer_ids(folder)
    if size > vocab_size:
        raise Refusal(
            f"the tokenizer {folder} has {size} ids and {recipe} has an embedding of {vocab_size}",
            f"Use the model's own tokenizer, or set model.vocab_size={size}.",
        )
