"""``slipway data inspect`` and ``blend``: what they say of files whose content is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from slipway.configs import Refusal
from slipway.configs.blend import Source
from slipway.launch.cli.app import app
from slipway.launch.data import inspect as module
from slipway.launch.data.blend import capped, readings
from slipway.launch.data.index import write_index
from slipway.launch.data.inspect import inspect
from slipway.launch.data.prepare import prepare
from slipway.launch.data.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A prefix of 12 documents, one of them empty and three copies of another, and its tokenizer."""
    folder = tmp_path_factory.mktemp("inspect")
    texts = [f"document {i} " * (1 << i % 5) for i in range(8)] + ["", *["the same [bold] text"] * 3]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer([str(folder / "a.jsonl")], folder / "tokenizer", 300)
    prepare([str(folder / "a.jsonl")], str(folder / "tokenizer"), str(folder / "a"))
    return str(folder / "a"), str(folder / "tokenizer")


def _slipway(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["data", *words])
    assert done.exit_code == code, done.output
    return done.stdout


def test_inspect_counts_what_is_there(corpus: tuple[str, str]) -> None:
    prefix, _ = corpus
    found = inspect(prefix, documents=2)
    tokens = np.fromfile(prefix + ".bin", np.uint16)
    ends = np.flatnonzero(tokens == 0)
    lengths = np.diff(ends, prepend=-1)
    assert (found.documents, found.sequences, found.tokens) == (12, 11, len(tokens))
    assert (found.lengths.smallest, found.lengths.largest) == (lengths.min(), lengths.max())
    assert found.lengths.median == np.sort(lengths)[len(lengths) // 2]
    assert sum(count for _, _, count in found.lengths.bins) == 11
    assert all(
        low <= high and count == np.count_nonzero((lengths >= low) & (lengths < high))
        for low, high, count in found.lengths.bins
    )
    assert (found.ids.smallest, found.ids.largest) == (tokens.min(), tokens.max())
    assert found.ids.distinct == len(np.unique(tokens))
    assert (found.duplicates.compared, found.duplicates.copies) == (11, 2)
    assert found.ended == 1.0
    assert found.first == ["document 0 <|endoftext|>", "document 1 document 1 <|endoftext|>"]
    assert found.manifest and found.manifest.corpus.unigram_entropy == pytest.approx(found.ids.unigram_entropy)


def test_inspect_prints_and_verifies(corpus: tuple[str, str], tmp_path: Path) -> None:
    prefix, _ = corpus
    shown = _slipway("inspect", prefix + ".bin", "--documents", "12")
    assert "12 documents" in shown and "18.18% are copies" in shown and "the same [bold] text" in shown
    assert json.loads(_slipway("inspect", prefix, "--json"))["duplicates"]["copies"] == 2
    copy = str(tmp_path / "copy")
    for name in (".bin", ".idx", ".manifest.json"):
        Path(copy + name).write_bytes(Path(prefix + name).read_bytes())
    _slipway("inspect", copy, "--verify")
    data = bytearray(Path(copy + ".bin").read_bytes())
    data[10] ^= 1
    Path(copy + ".bin").write_bytes(data)
    with pytest.raises(Refusal, match=r"copy.bin is not the file that was prepared: its SHA-256"):
        inspect(copy, verify=True)
    Path(copy + ".manifest.json").unlink()
    with pytest.raises(Refusal, match="there is no manifest"):
        inspect(copy, verify=True)
    assert inspect(copy).first == []


def test_a_sample_of_copies_is_not_biased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of 40,000 sequences are copies; a sample of a tenth finds that, which a random sample would not."""
    chosen = np.random.default_rng(0)
    rows = [chosen.integers(0, 1000, 6).astype(np.uint16) for _ in range(20_000)]
    np.concatenate([*rows, *rows]).tofile(tmp_path / "c.bin")
    write_index(tmp_path / "c.idx", np.full(40_000, 6, np.int32), "uint16")
    monkeypatch.setattr(module, "COMPARED", 4000)
    monkeypatch.setattr(module, "READ_WHOLE_TOKENS", 10_000)
    monkeypatch.setattr(module, "CHUNK", 1000)
    found = inspect(str(tmp_path / "c"))
    assert 3000 < found.duplicates.compared < 5000
    assert found.duplicates.copies * 2 == found.duplicates.compared
    assert found.ids.read_tokens == 10_000


@given(
    st.lists(st.tuples(st.floats(1, 1e6), st.floats(0.01, 1)), min_size=1, max_size=6),
    st.floats(0.1, 20),
    st.floats(0.01, 1),
)
def test_capped_blends_keep_the_tokens_and_the_limit(
    drawn: list[tuple[float, float]], epochs: float, part: float
) -> None:
    total = sum(weight for _, weight in drawn)
    blend = [Source(str(i), weight / total) for i, (_, weight) in enumerate(drawn)]
    counts = [count for count, _ in drawn]
    needed = sum(counts) * epochs * part
    rows = readings(blend, counts, needed)
    made = capped(rows, epochs)
    assert sum(row.read for row in made) == pytest.approx(needed)
    assert all(row.epochs <= epochs * (1 + 1e-6) for row in made)
    uncapped = [(new.share / old.share) for new, old in zip(made, rows, strict=True) if new.epochs < epochs * 0.999]
    assert not uncapped or max(uncapped) == pytest.approx(min(uncapped)), "the others keep their proportions"
    with pytest.raises(Refusal, match="epochs of all sources are"):
        capped(rows, epochs * part * 0.9)


def test_blend_prints_epochs_and_the_key(corpus: tuple[str, str]) -> None:
    prefix, _ = corpus
    printed = json.loads(_slipway("blend", "0.25", prefix, "0.75", prefix + "", "--tokens", "1M", "--json"))
    tokens = np.fromfile(prefix + ".bin", np.uint16).size
    assert [row["epochs"] for row in printed["sources"]] == [250_000 / tokens, 750_000 / tokens]
    assert "up to 4 times" in _slipway("blend", prefix, "--tokens", "1M")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["blend", "/no/such", "--tokens", "1B"], "there is no /no/such.idx"),
        (["blend", "0.3", "/no/such", "/other", "--tokens", "1B"], "is not a blend"),
        (["blend", "/no/such", "--tokens", "many"], "--tokens many is not a number of tokens"),
        (["inspect", "/no/such"], "there is no /no/such.idx"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], said: str, capsys: Any) -> None:
    with pytest.raises(Refusal) as refused:
        app.main(["data", *words], standalone_mode=False)
    assert said in refused.value.sentence()


def test_max_epochs_that_cannot_be_met_is_refused(corpus: tuple[str, str]) -> None:
    with pytest.raises(Refusal, match="1 epochs of all sources are"):
        app.main(["data", "blend", corpus[0], "--tokens", "1M", "--max-epochs", "1"], standalone_mode=False)
    with pytest.raises(Refusal, match="is not above 0"):
        app.main(["data", "blend", corpus[0], "--tokens", "1M", "--max-epochs", "nan"], standalone_mode=False)
