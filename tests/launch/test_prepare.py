"""Text to .bin and .idx: Megatron-Core reads them, no file is left incomplete, and interrupted work is continued."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipway.configs import Refusal
from slipway.launch.data.documents import documents
from slipway.launch.data.prepare import prepare
from slipway.launch.data.tokenizer import train_tokenizer
from slipway.recipes.runtime.data_check import check_prefix, check_split, check_tokenizer

LIBRARY = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tok") / "tokenizer"
    assert train_tokenizer([str(LIBRARY / "json"), str(LIBRARY / "email")], folder, 600, pattern="*.py") == 600
    return str(folder)


@pytest.mark.nemo
def test_megatron_reads_back_the_text_and_writes_the_same_bytes(tokenizer: str, tmp_path: Path, in_child: Any) -> None:
    prefix = str(tmp_path / "corpus")
    made = prepare([str(LIBRARY / "json")], tokenizer, prefix, pattern="*.py", workers=2)
    check_prefix(prefix)
    texts = [p.read_text() for p in sorted((LIBRARY / "json").rglob("*.py")) if "__pycache__" not in str(p)]

    def read() -> list[Any]:
        import torch
        from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
        from tokenizers import Tokenizer

        loaded = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
        dataset = IndexedDataset(prefix)
        decoded = [loaded.decode(list(dataset[i][:-1])) for i in range(len(dataset))]
        builder = IndexedDatasetBuilder(prefix + "2.bin", dtype=np.uint16)
        for i in range(len(dataset)):
            builder.add_document(torch.tensor(dataset[i].astype(np.int64)), [len(dataset[i])])
        builder.finalize(prefix + "2.idx")
        same = [Path(prefix + s).read_bytes() == Path(prefix + "2" + s).read_bytes() for s in (".bin", ".idx")]
        return [decoded, same]

    decoded, same = in_child(read)
    assert decoded == texts
    assert same == [True, True]
    assert made.documents == len(texts)


def test_output_is_the_same_whatever_the_number_of_workers(tokenizer: str, tmp_path: Path) -> None:
    for workers in (1, 2):
        prepare(
            [str(LIBRARY / "asyncio"), str(LIBRARY / "email")],
            tokenizer,
            str(tmp_path / f"w{workers}"),
            pattern="*.py",
            workers=workers,
        )
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"w1{suffix}").read_bytes() == (tmp_path / f"w2{suffix}").read_bytes()


def test_an_error_names_file_and_offset_and_no_incomplete_file_is_left(tokenizer: str, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("fine")
    bad.write_bytes(b"abc\xff\xfe")
    with pytest.raises(Refusal, match=r"bad.txt is not UTF-8 at byte 3"):
        prepare([str(good), str(bad)], tokenizer, str(tmp_path / "out"))
    assert not (tmp_path / "out.bin").exists() and not (tmp_path / "out.idx").exists()
    made = prepare([str(good), str(bad)], tokenizer, str(tmp_path / "out"), skip_bad=True)
    assert (made.documents, made.skipped) == (1, 1)
    with pytest.raises(Refusal, match="already exists"):
        prepare([str(good)], tokenizer, str(tmp_path / "out"))


def test_interrupted_work_is_continued(tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slipway.launch.data import prepare as module

    monkeypatch.setattr(module, "SHARD_BYTES", 20_000)
    prefix = str(tmp_path / "corpus")

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([str(LIBRARY / "email")], tokenizer, prefix, pattern="*.py", workers=1, progress=stop)
    assert list(Path(prefix + ".parts").glob("*.npz"))
    assert not Path(prefix + ".bin").exists()
    seen: list[int] = []
    prepare(
        [str(LIBRARY / "email")],
        tokenizer,
        prefix,
        pattern="*.py",
        workers=1,
        progress=lambda done, total: seen.append(done),
    )
    assert seen[0] > 0, "the finished shards were not tokenized again"
    check_prefix(prefix)
    assert not Path(prefix + ".parts").exists()


def test_jsonl_lines_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "one"}) + "\n\n" + json.dumps({"text": "two"}) + "\n")
    assert list(documents(path)) == ["one", "two"]
    path.write_text('{"txt": 1}\n')
    with pytest.raises(Refusal, match="line 1 is not a JSON object with a text field"):
        list(documents(path))


def test_a_damaged_prefix_or_a_wrong_tokenizer_is_refused(tokenizer: str, tmp_path: Path) -> None:
    prefix = str(tmp_path / "corpus")
    with pytest.raises(Refusal, match="there is no"):
        check_prefix(prefix)
    prepare([str(LIBRARY / "json")], tokenizer, prefix, pattern="*.py")
    index = Path(prefix + ".idx")
    whole = index.read_bytes()
    index.write_bytes(whole[:-8])
    with pytest.raises(Refusal, match="corpus.idx is truncated"):
        check_prefix(prefix)
    index.write_bytes(b"nonsense")
    with pytest.raises(Refusal, match="is not a Megatron index"):
        check_prefix(prefix)
    index.write_bytes(whole)
    with pytest.raises(Refusal, match="holds 5 documents, and data.split=900,50,50 leaves none for test"):
        check_split(prefix, "900,50,50")
    check_split(prefix, "1,0,0")
    with pytest.raises(Refusal, match="data.split=9,1 is not legal"):
        check_split(prefix, "9,1")
    data = Path(prefix + ".bin")
    data.write_bytes(data.read_bytes()[:-2])
    with pytest.raises(Refusal, match="corpus.bin is truncated"):
        check_prefix(prefix)
    check_tokenizer(tokenizer, 600, "x")
    with pytest.raises(Refusal, match="has 600 ids and x has an embedding of 512"):
        check_tokenizer(tokenizer, 512, "x")


def test_a_folder_that_cannot_be_written_is_refused(tokenizer: str) -> None:
    with pytest.raises(Refusal, match="cannot be made"):
        prepare([str(LIBRARY / "json")], tokenizer, "/proc/nowhere/corpus", pattern="*.py")
