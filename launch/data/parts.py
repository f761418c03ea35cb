"""The tokens of a corpus on their way to the .bin file: finished parts, and how they are joined in order.

Everything lies in one folder until the end. A part is one file, written under another name and renamed. Parts are
appended to ``tokens`` and ``lengths`` in order; what has been appended is saved in ``joined.npz``, and only then are
the parts removed. After a crash, ``tokens`` and ``lengths`` are cut back to what was saved.
"""

from __future__ import annotations

import fcntl
import os
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np

from slipway.configs import Refusal

SAVE_SECONDS = 2.0  # between two saves of what has been joined


@dataclass(frozen=True)
class Encoded:
    """The tokens of one part.

    Attributes:
        tokens: ids, (tokens,).
        lengths: tokens of each document, (documents,), int32.
        bad: documents that were left out.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    bad: int


@dataclass
class Joined:
    """What has been appended: every part before part ``part`` of unit ``unit``."""

    unit: int = 0
    part: int = 0
    token_bytes: int = 0
    documents: int = 0
    bad: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """How often each id occurs."""


class Parts:
    """The folder of a preparation that is not finished. ``key`` says what it is made from."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.tokens, self.lengths = folder / "tokens", folder / "lengths"
        self.finishing = folder / "finishing"  # the outputs are being renamed
        self._state = folder / "joined.npz"
        self._saved_at = time.monotonic()
        self._to_remove: list[Path] = []
        self._lock: TextIO | None = None
        self.joined = Joined()

    def begin(self) -> bool:
        """Prepare the folder. Returns whether earlier work of the same corpus is continued.

        Raises:
            Refusal: another process works in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = (self.folder / "lock").open("a")  # released by the kernel, however the process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._lock = lock
        except BlockingIOError:
            raise Refusal(
                f"another process works in {self.folder}", "Wait until it ends, or give another --out."
            ) from None
        name = self.folder / "key"
        continued = name.is_file() and name.read_text() == self.key
        for path in self.folder.iterdir():
            if path.name != "lock" and (not continued or path.suffix == ".tmp"):
                path.unlink()
        if not continued:
            name.write_text(self.key)
        self.joined = self._load()
        if self.finishing.is_file():
            return True
        for part in self.folder.glob("*-*.npz"):
            if not _is_whole(part):
                part.unlink()  # a machine that lost power may have lost its content
        for path, size in ((self.tokens, self.joined.token_bytes), (self.lengths, self.joined.documents * 4)):
            with path.open("ab") as file:
                file.truncate(size)
        return continued

    def end(self) -> None:
        """Let other processes work in the folder, if this one does."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()
            self._lock = None

    def _load(self) -> Joined:
        if not self._state.is_file():
            return Joined()
        with np.load(self._state) as saved:
            numbers = {name: int(saved[name]) for name in ("unit", "part", "token_bytes", "documents", "bad")}
            return Joined(**numbers, counts=saved["counts"])

    def _file(self, unit: int, part: int, last: bool) -> Path:
        return self.folder / f"{unit}-{part}{'-last' if last else ''}.npz"

    def found(self, unit: int, part: int) -> bool | None:
        """Whether this part is the last of its unit; None where it is not finished."""
        if (unit, part) < (self.joined.unit, self.joined.part):
            return False
        for last in (False, True):
            if self._file(unit, part, last).is_file():
                return last
        return None

    def is_whole(self, unit: int) -> bool:
        """Whether every part of a unit is finished."""
        part = self.joined.part if unit == self.joined.unit else 0
        while unit >= self.joined.unit:
            last = self.found(unit, part)
            if last is not False:
                return last is True
            part += 1
        return True

    def write(self, unit: int, part: int, last: bool, encoded: Encoded) -> None:
        """Keep a finished part, with how often its ids occur."""
        target = self._file(unit, part, last)
        temporary = target.with_suffix(".tmp")
        counts = np.bincount(encoded.tokens)
        ids = np.flatnonzero(counts)
        with temporary.open("wb") as file:
            np.savez(
                file,
                tokens=encoded.tokens,
                lengths=encoded.lengths,
                bad=encoded.bad,
                ids=ids.astype(np.int32),
                counts=counts[ids],
            )
        temporary.replace(target)

    def join(self) -> None:
        """Append every part whose turn it is."""
        for path, last in self._ready():
            with np.load(path) as part:
                self._append(part["tokens"], part["lengths"])
                self._count(part["ids"], part["counts"])
                self.joined.bad += int(part["bad"])
            self.joined.unit, self.joined.part = (
                (self.joined.unit + 1, 0) if last else (self.joined.unit, self.joined.part + 1)
            )
            self._to_remove.append(path)
        if time.monotonic() - self._saved_at > SAVE_SECONDS:
            self.save()

    def _ready(self) -> Iterator[tuple[Path, bool]]:
        while (last := self.found(self.joined.unit, self.joined.part)) is not None:
            yield self._file(self.joined.unit, self.joined.part, last), last

    def _append(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        with self.tokens.open("ab") as file:
            file.write(tokens.data)
        with self.lengths.open("ab") as file:
            file.write(lengths.data)
        self.joined.token_bytes += tokens.nbytes
        self.joined.documents += len(lengths)

    def _count(self, ids: np.ndarray, counts: np.ndarray) -> None:
        if len(ids) and ids[-1] >= len(self.joined.counts):
            self.joined.counts = np.pad(self.joined.counts, (0, int(ids[-1]) + 1 - len(self.joined.counts)))
        self.joined.counts[ids] += counts

    def save(self) -> None:
        """Make what has been joined durable, and remove its parts."""
        for path in (self.tokens, self.lengths):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        temporary = self._state.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, **vars(self.joined))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._state)
        for path in self._to_remove:
            path.unlink()
        self._to_remove.clear()
        self._saved_at = time.monotonic()


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as part:
            return part.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False
