"""Turn texts into ids, with Hugging Face's tokenizers or with gigatoken, which gives the same ids many times faster."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from enum import Enum
from typing import Any, Protocol

import numpy as np

from slipway.configs import Refusal
from slipway.launch.data.optional import need
from slipway.launch.data.tokenizer import load_tokenizer, tokenizer_file

CHECKED_DOCUMENTS = 4  # of each piece, with both engines
CHECKED_CHARACTERS = 500  # of each of them, from its middle on

# Where tokenizers differ: runs of spaces and line ends, contractions, digits, combining marks, scripts without spaces,
# emoji with joiners, control characters, and the names of special tokens
HARD_TEXTS = (
    "  two  spaces\n\n\n\tand a tab \r\n end ",
    "I'll we've don't IT'S can’t l'été",
    "3.14159 1000000 007 ²³ ½ Ⅷ 1,234,567.89",
    "e\u0301a\u0308 Å ﬁ ﷺ İstanbul ǅ ẞ",
    "日本語のテキスト 中文文本 한국어 ไทย हिन्दी العربية עברית",
    "👩‍👩‍👧‍👦 🇳🇴 👍🏽 \u200b\u200d\ufeff\u00a0\u3000",
    "\x00\x01\x7f\u0085\u2028\u2029\ufffd\U0010ffff",
    "<|endoftext|> </s> <s> <unk> <|im_start|>user <pad>",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # __init__\n",
    "https://example.org/a?b=c&d=%20e#f user@example.org ABCdefGHI a_b-c",
)


class Engine(str, Enum):
    """Which library turns text into ids."""

    AUTO = "auto"
    TOKENIZERS = "tokenizers"
    GIGATOKEN = "gigatoken"


class Encoder(Protocol):
    """An engine with a tokenizer loaded."""

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts in one row, and the number of ids of each."""


class Tokenizers:
    """Hugging Face's tokenizers, on one thread."""

    def __init__(self, tokenizer: str) -> None:
        self.loaded, _ = load_tokenizer(tokenizer)

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [np.asarray(found.ids, np.uint32) for found in self._batches(texts)]
        joined = np.concatenate(rows) if rows else np.zeros(0, np.uint32)
        return joined, np.asarray([len(row) for row in rows], np.int64)

    def _batches(self, texts: list[str]) -> list[Any]:
        return self.loaded.encode_batch_fast(texts, add_special_tokens=False)


class Gigatoken:
    """gigatoken on one thread. A sample of every piece is compared with Hugging Face's tokenizers."""

    def __init__(self, tokenizer: str) -> None:
        self.loaded = need("gigatoken", "--engine gigatoken").Tokenizer.from_json(
            tokenizer_file(tokenizer).read_bytes()
        )
        self.reference = Tokenizers(tokenizer)

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        step = max(len(texts) // CHECKED_DOCUMENTS, 1)
        chosen = texts[::step][:CHECKED_DOCUMENTS]
        sample = [text[len(text) // 2 :][:CHECKED_CHARACTERS] for text in chosen]
        if not self.agrees(sample):
            raise Refusal(
                "gigatoken and tokenizers disagree about the ids of a text of this corpus",
                "Pass --engine tokenizers, another --out, and please report the text to gigatoken.",
            )
        return self._encode(texts)

    def _encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if not texts:
            return np.zeros(0, np.uint32), np.zeros(0, np.int64)
        layout = self.loaded.encode_batch(texts, parallel=False).layout
        return np.asarray(layout.content.data), np.diff(np.asarray(layout.offsets.data)).astype(np.int64)

    def agrees(self, texts: list[str]) -> bool:
        """Whether both engines give the same ids."""
        ours, theirs = self._encode(texts), self.reference.encode(texts)
        return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def choose(tokenizer: str, engine: Engine) -> tuple[Engine, str]:
    """The engine for a tokenizer: with AUTO, gigatoken where it is installed and gives the same ids as tokenizers.

    Returns:
        The engine, and why it is not gigatoken, if it could be.

    Raises:
        Refusal: gigatoken was asked for and is not installed, cannot read the tokenizer, or gives other ids.
    """
    if engine is Engine.TOKENIZERS:
        return engine, ""
    if engine is Engine.AUTO and importlib.util.find_spec("gigatoken") is None:
        return Engine.TOKENIZERS, "gigatoken, which is many times faster, is not installed"
    try:
        fast = Gigatoken(tokenizer)
        reason = "" if fast.agrees(list(HARD_TEXTS)) else "gives other ids than tokenizers"
    except (Refusal, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # whatever gigatoken raises for a model that it does not know: also Rust's panics
        reason = f"cannot read it: {' '.join(str(error).split())}"
    if not reason:
        return Engine.GIGATOKEN, ""
    if engine is Engine.GIGATOKEN:
        raise Refusal(f"gigatoken and the tokenizer {tokenizer}: it {reason}", "Pass --engine tokenizers.")
    return Engine.TOKENIZERS, f"gigatoken {reason}"


def load(tokenizer: str, engine: Engine) -> Encoder:
    """The engine that :func:`choose` named, with the tokenizer loaded."""
    return Gigatoken(tokenizer) if engine is Engine.GIGATOKEN else Tokenizers(tokenizer)


def version(engine: Engine) -> str:
    """The engine's name and version."""
    return f"{engine.value} {importlib.metadata.version(engine.value)}"
