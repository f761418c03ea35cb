"""The tokens of a set of instructions, and which share a sequence: made once, kept in a folder, read by every rank.

Imports neither torch nor NeMo.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slipway.configs import Data, Refusal
from slipway.configs.schema import TooLong
from slipway.recipes.finetune.examples import Unusable, lines_of, read_example
from slipway.recipes.finetune.packing import pack
from slipway.recipes.finetune.template import Tokenization, Tokens

TOO_LONG = "is longer than a sequence"
_LONG_FIX = "Give a larger layout.seq_length, or leave such lines out with data.too_long=drop."
_ARRAYS = ("ids", "answer", "starts", "members", "pack_starts")


@dataclass(frozen=True)
class Tokenized:
    """Examples after each other, and the sequences that they share.

    Attributes:
        ids: int32 [tokens].
        answer: bool [tokens].
        starts: int64 [examples + 1], where each example begins.
        members: int64 [examples], the examples of the first sequence, then of the next.
        pack_starts: int64 [sequences + 1], where each sequence begins in ``members``.
    """

    ids: npt.NDArray[np.int32]
    answer: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int64]
    members: npt.NDArray[np.int64]
    pack_starts: npt.NDArray[np.int64]

    @property
    def num_sequences(self) -> int:
        return len(self.pack_starts) - 1

    @property
    def num_examples(self) -> int:
        return len(self.starts) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens that a model reads: all but the last of each example."""
        return len(self.ids) - self.num_examples

    def sequence(self, index: int) -> list[Tokens]:
        """The examples of one sequence."""
        members = self.members[self.pack_starts[index] : self.pack_starts[index + 1]]
        spans = [slice(self.starts[member], self.starts[member + 1]) for member in members]
        return [Tokens(self.ids[span], self.answer[span]) for span in spans]


@dataclass
class Problems:
    """Lines that are no examples: for each reason their number and the first of them."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, tuple[Path, int]] = field(default_factory=dict)

    def add(self, reason: str, path: Path, line: int) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, (path, line))

    def refuse(self, allowed: Iterable[str] = ()) -> None:
        """Refuse the most frequent reason that is not allowed.

        Raises:
            Refusal: there is one.
        """
        for reason, count in self.counts.most_common():
            if reason in allowed:
                continue
            path, line = self.first[reason]
            more = f" (and {count - 1:,} more lines)" if count > 1 else ""
            fix = "See slipway data preview, which shows what is learned of each line."
            raise Refusal(f"line {line} of {path}{more} {reason}", _LONG_FIX if reason == TOO_LONG else fix)


def examples(
    paths: Iterable[Path], tokenize: Tokenization, seq_length: int, problems: Problems, most: int = 0
) -> Iterator[tuple[int, Tokens]]:
    """The number and the tokens of every usable line; the others are counted.

    Args:
        most: lines of each file that are looked at; 0: all.
    """
    for path in paths:
        for index, (number, line) in enumerate(lines_of(path)):
            if most and index >= most:
                break
            try:
                tokens = tokenize(read_example(line))
                require_usable(tokens, seq_length)
            except Unusable as why:
                problems.add(str(why), path, number)
                continue
            yield number, tokens


def require_usable(tokens: Tokens, seq_length: int) -> None:
    """Require an answer, and a length that fits.

    Raises:
        Unusable: one is missing.
    """
    if not tokens.answer[1:].any():
        raise Unusable("has no token of an answer")
    if len(tokens.ids) - 1 > seq_length:
        raise Unusable(TOO_LONG)


def tokenized(
    paths: list[Path], tokenize: Tokenization, data: Data, seq_length: int, seed: int, share: tuple[float, float]
) -> Tokenized:
    """Every example of the files that falls into ``share`` of them, packed or one a sequence.

    Args:
        share: from and to which part of the examples, in a random order: (0, 1) are all.

    Raises:
        Refusal: a line that is no example, one that is too long where ``data`` refuses it, or no examples.
    """
    problems = Problems()
    found = [tokens for _, tokens in examples(paths, tokenize, seq_length, problems)]
    problems.refuse([TOO_LONG] if data.too_long is TooLong.drop else [])
    order = np.random.default_rng(seed).permutation(len(found))
    found = [found[i] for i in np.sort(order[round(share[0] * len(found)) : round(share[1] * len(found))])]
    if not found:
        raise Refusal(f"{paths[0]} holds no examples", "Give a file with at least one, or another data.split.")
    return packed(found, data.packed, seq_length, seed)


def packed(found: list[Tokens], together: bool, seq_length: int, seed: int) -> Tokenized:
    """Examples as sequences of ``seq_length`` tokens: several in each, or one."""
    lengths = np.asarray([len(tokens.ids) for tokens in found], np.int64)
    members = pack(lengths - 1, seq_length, seed) if together else [np.asarray([i]) for i in range(len(found))]
    return Tokenized(
        ids=np.concatenate([tokens.ids for tokens in found]),
        answer=np.concatenate([tokens.answer for tokens in found]),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        members=np.concatenate(members).astype(np.int64),
        pack_starts=np.concatenate([[0], np.cumsum([len(m) for m in members])]).astype(np.int64),
    )


def key_of(paths: list[Path], tokenizer: Any, data: Data, **settings: Any) -> str:
    """A name for the tokens of these files under these settings: it changes where anything changes that they depend on.

    Args:
        tokenizer: of transformers.
        settings: what else they depend on.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    if data.chat_template:
        digest.update(Path(data.chat_template).read_bytes())
    made = [data.template, data.packed, data.too_long, sorted(settings.items()), str(tokenizer.chat_template)]
    digest.update(repr(made).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()[:16]


def save(made: Tokenized, folder: Path) -> None:
    """Write the arrays to ``folder``, which appears complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    for name, array in asdict(made).items():
        np.save(partial / f"{name}.npy", array)
    try:
        os.rename(partial, folder)
    except OSError:  # another node was faster
        shutil.rmtree(partial)


def load(folder: Path) -> Tokenized:
    """The arrays of a folder, mapped into memory."""
    return Tokenized(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS))
