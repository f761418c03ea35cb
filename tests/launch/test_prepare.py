"""Text to .bin and .idx: Megatron-Core reads them, no file is left incomplete, and interrupted work is continued."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sysconfig
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from slipway.configs import Refusal
from slipway.launch.data import encoders, reading
from slipway.launch.data.documents import Format, find
from slipway.launch.data.encoders import Engine
from slipway.launch.data.prepare import Options, Prepared
from slipway.launch.data.prepare import prepare as prepare_corpus
from slipway.launch.data.tokenizer import train_tokenizer
from slipway.recipes.runtime.data_check import check_prefix, check_split, check_tokenizer
from slipway.recipes.runtime.data_manifest import check_manifest, read_manifest

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
SOURCES = sorted(LIBRARY.glob("email/*.py"))  # 20 files, 290 kB


def prepare(inputs: list[str], tokenizer: str, out: Path | str, **options: Any) -> Prepared:
    return prepare_corpus(inputs, tokenizer, str(out), Options(**options))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tok") / "tokenizer"
    assert train_tokenizer([str(LIBRARY / "json"), str(LIBRARY / "email")], folder, 600, pattern="*.py") == 600
    return str(folder)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of many documents: empty ones, other fields, escapes, blank lines, no end of the last line."""
    path = tmp_path_factory.mktemp("lines") / "corpus.jsonl"
    chosen = random.Random(0)
    text = "".join(p.read_text() for p in SOURCES)
    rows: list[str] = []
    while text:
        cut = chosen.choice([0, 1, 40, 400, 4000])
        document = {"id": len(rows), "text": text[:cut], "meta": {"text": "not this", "lang": "é日本"}}
        rows.append(json.dumps(document, ensure_ascii=chosen.random() < 0.5))
        text = text[cut:]
    path.write_text("\n\n".join(rows))
    return path


def output(prefix: Path | str) -> list[bytes]:
    return [Path(f"{prefix}{suffix}").read_bytes() for suffix in (".bin", ".idx")]


@pytest.mark.nemo
def test_megatron_reads_back_the_text_and_writes_the_same_bytes(
    tokenizer: str, lines: Path, tmp_path: Path, in_child: Any
) -> None:
    """Empty documents included, for which Megatron-LM's tools/preprocess_data.py adds a document without tokens."""
    prefix = str(tmp_path / "corpus")
    made = prepare([str(lines)], tokenizer, prefix, workers=2)
    check_prefix(prefix)
    texts = [json.loads(line)["text"] for line in lines.read_text().split("\n") if line]

    def read() -> list[Any]:
        import torch
        from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
        from tokenizers import Tokenizer

        loaded = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
        dataset = IndexedDataset(prefix)
        decoded = [loaded.decode(list(dataset[i][:-1])) for i in range(len(dataset))]
        builder = IndexedDatasetBuilder(prefix + "2.bin", dtype=np.uint16)
        for text in texts:
            ids = loaded.encode(text).ids
            ids += [loaded.token_to_id("<|endoftext|>")] if ids else []
            builder.add_document(torch.tensor(ids), [len(ids)] if ids else [])
        builder.finalize(prefix + "2.idx")
        return [decoded, output(prefix) == output(prefix + "2")]

    decoded, same = in_child(read)
    assert decoded == [text for text in texts if text]
    assert same
    assert made.documents == len(texts)
    manifest = read_manifest(prefix)
    assert manifest and manifest.corpus.empty_documents == texts.count("") > 0


def test_every_format_compression_and_number_of_workers_gives_the_same_bytes(
    tokenizer: str, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in lines.read_text().split("\n") if line]
    table = pyarrow.table({"text": [row["text"] for row in rows], "id": [row["id"] for row in rows]})
    inputs = {name: tmp_path / name for name in ("a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow", "saved")}
    data = lines.read_bytes()
    middle = len(data) // 2  # of a line: a second gzip member and a second frame begin there
    inputs["a.jsonl.gz"].write_bytes(gzip.compress(data[:middle]) + gzip.compress(data[middle:]) + b"\0" * 100)
    frames = [zstandard.ZstdCompressor().compress(part) for part in (data[:middle], data[middle:])]
    inputs["a.jsonl.zst"].write_bytes(b"".join(frames))
    pyarrow.parquet.write_table(table, inputs["a.parquet"], row_group_size=100)
    with pyarrow.OSFile(str(inputs["a.arrow"]), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    inputs["saved"].mkdir()
    half = len(rows) // 2
    for name, part in (("data-0.arrow", table[:half]), ("data-1.arrow", table[half:])):
        saved = str(inputs["saved"] / name)
        with pyarrow.OSFile(saved, "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(part, max_chunksize=50)
    names = [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]
    (inputs["saved"] / "state.json").write_text(json.dumps({"_data_files": names}))

    whole = prepare([str(lines)], tokenizer, tmp_path / "whole", workers=1)
    assert whole.documents == len(rows)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 9_001)
    for name, path in ({"lines": lines} | inputs).items():
        for workers in (1, 3):
            out = tmp_path / f"{name}-{workers}"
            made = prepare([str(path)], tokenizer, out, workers=workers, engine=Engine.GIGATOKEN)
            assert output(out) == output(tmp_path / "whole"), (name, workers)
            assert replace(made, prefix="", engine="", sources="") == replace(whole, prefix="", engine="", sources="")
    assert output(tmp_path / "whole")
    prepare([str(lines)], tokenizer, tmp_path / "tokenizers", engine=Engine.TOKENIZERS)
    assert output(tmp_path / "tokenizers") == output(tmp_path / "whole")


def test_a_corpus_that_is_killed_anywhere_is_continued_and_ends_the_same(
    tokenizer: str, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of the parent, after ever longer times; its workers die with it."""
    zipped = tmp_path / "b.jsonl.zst"
    zipped.write_bytes(zstandard.ZstdCompressor().compress(lines.read_bytes()))
    monkeypatch.setattr(reading, "BLOCK_BYTES", 3_001)
    monkeypatch.setattr("slipway.launch.data.parts.SAVE_SECONDS", 0.02)
    options = Options(workers=2, engine=Engine.TOKENIZERS)
    inputs = [str(lines), str(zipped)]
    prepare_corpus(inputs, tokenizer, str(tmp_path / "whole"), options)
    killed, seconds, starts = 0, 0.1, list[int]()
    fork = multiprocessing.get_context("fork")
    seen = fork.SimpleQueue()
    while True:
        first = [True]

        def progress(done: int, total: int) -> None:
            if first[0]:
                seen.put(done)
            first[0] = False

        def work() -> None:
            os.setsid()
            prepare_corpus(inputs, tokenizer, str(tmp_path / "killed"), options, progress=progress)

        child = fork.Process(target=work)
        child.start()
        child.join(seconds)
        ended = child.exitcode
        if ended is None:
            child.kill()
            child.join()
            killed += 1
            _require_group_ends(child.pid or 0)
        while not seen.empty():
            starts.append(seen.get())
        if ended is not None:
            break
        seconds *= 1.3
    assert ended == 0 and killed >= 2
    assert starts == sorted(starts) and starts[-1] > 0, "finished parts were tokenized again"
    assert output(tmp_path / "killed") == output(tmp_path / "whole")
    assert not (tmp_path / "killed.parts").exists()


def _require_group_ends(group: int) -> None:
    for _ in range(100):
        left = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True).stdout
        if not [line for line in left.split() if not line.startswith("Z")]:
            return
        time.sleep(0.05)
    raise AssertionError(f"workers outlive their parent: {left}")


def test_a_kill_while_the_outputs_are_renamed_is_continued(
    tokenizer: str, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare([str(lines)], tokenizer, tmp_path / "whole")

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    for name in ("write_index", "file_facts", "shutil.rmtree"):
        with monkeypatch.context() as patched:
            patched.setattr(f"slipway.launch.data.prepare.{name}", stop)
            with pytest.raises(KeyboardInterrupt):
                prepare([str(lines)], tokenizer, tmp_path / "out")
        assert (tmp_path / "out.bin").exists()
    prepare([str(lines)], tokenizer, tmp_path / "out")
    assert output(tmp_path / "out") == output(tmp_path / "whole")
    with pytest.raises(Refusal, match="already exists"):
        prepare([str(lines)], tokenizer, tmp_path / "out")


def test_a_worker_that_is_killed_is_named_and_the_work_is_kept(
    tokenizer: str, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 3_001)

    def die(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr("slipway.launch.data.prepare._encoded", die)
        with pytest.raises(Refusal, match="a worker was killed"):
            prepare([str(lines)], tokenizer, tmp_path / "out", workers=2)
    prepare([str(lines)], tokenizer, tmp_path / "out")
    prepare([str(lines)], tokenizer, tmp_path / "whole")
    assert output(tmp_path / "out") == output(tmp_path / "whole")


def test_a_second_process_is_refused(tokenizer: str, lines: Path, tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(Refusal, match=r"another process works in .*out.parts"):
            prepare([str(lines)], tokenizer, tmp_path / "out")

    prepare_corpus([str(lines)], tokenizer, str(tmp_path / "out"), Options(), progress=second)
    assert (tmp_path / "out.bin").exists()


def test_changed_inputs_or_settings_start_again(tokenizer: str, lines: Path, tmp_path: Path) -> None:
    """Parts of other settings are never joined: without end-of-document tokens after a run with them was stopped."""

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_corpus([str(lines)], tokenizer, str(tmp_path / "out"), Options(), progress=stop)
    parts = list((tmp_path / "out.parts").glob("*.npz"))
    assert parts
    parts[0].write_bytes(parts[0].read_bytes()[:100])  # as a machine that lost power leaves it
    prepare([str(lines)], tokenizer, tmp_path / "out")
    for name in ("bin", "idx", "manifest.json"):
        (tmp_path / f"out.{name}").unlink()
    with pytest.raises(KeyboardInterrupt):
        prepare_corpus([str(lines)], tokenizer, str(tmp_path / "out"), Options(), progress=stop)
    bare = prepare([str(lines)], tokenizer, tmp_path / "out", append_eod=False)
    full = prepare([str(lines)], tokenizer, tmp_path / "full")
    manifest = read_manifest(str(tmp_path / "full"))
    assert manifest
    assert bare.tokens == full.tokens - full.documents + manifest.corpus.empty_documents


def test_both_engines_agree_on_hard_texts_and_a_difference_is_refused(
    tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert encoders.choose(tokenizer, Engine.AUTO) == (Engine.GIGATOKEN, "")
    fast = encoders.Gigatoken(tokenizer)
    assert fast.agrees([*encoders.HARD_TEXTS, "", *(p.read_text() for p in SOURCES[:3])])
    monkeypatch.setattr(encoders.Tokenizers, "encode", lambda self, texts: (np.zeros(1), np.ones(len(texts))))
    with pytest.raises(Refusal, match="disagree"):
        fast.encode(["one", "two"])
    assert encoders.choose(tokenizer, Engine.AUTO) == (Engine.TOKENIZERS, "gigatoken gives other ids than tokenizers")
    with pytest.raises(Refusal, match="gives other ids than tokenizers"):
        encoders.choose(tokenizer, Engine.GIGATOKEN)


def test_a_tokenizer_that_gigatoken_does_not_read_is_left_to_tokenizers(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece

    vocabulary = {"[UNK]": 0, "</s>": 1, "a": 2, "##b": 3}
    Tokenizer(WordPiece(vocabulary, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    engine, why = encoders.choose(str(tmp_path), Engine.AUTO)
    assert engine is Engine.TOKENIZERS and why.startswith("gigatoken cannot read it")
    (tmp_path / "a.txt").write_text("ab")
    made = prepare([str(tmp_path / "a.txt")], str(tmp_path), tmp_path / "out")
    assert np.fromfile(tmp_path / "out.bin", np.uint16).tolist() == [2, 3, 1] and made.engine.startswith("tokenizers")


def test_an_error_names_file_and_offset_and_no_incomplete_file_is_left(tokenizer: str, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("fine")
    bad.write_bytes(b"abc\xff\xfe")
    with pytest.raises(Refusal, match=r"bad.txt is not UTF-8 at byte 3"):
        prepare([str(good), str(bad)], tokenizer, tmp_path / "out")
    assert not (tmp_path / "out.bin").exists() and not (tmp_path / "out.idx").exists()
    made = prepare([str(good), str(bad)], tokenizer, tmp_path / "out", skip_bad=True)
    assert (made.documents, made.skipped) == (1, 1)


def _damaged(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Inputs that cannot be read, and what is said of each."""
    row = json.dumps({"text": "x" * 3000}).encode() + b"\n"
    table = pyarrow.table({"body": ["a", None], "n": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "other.parquet")
    whole = (tmp_path / "other.parquet").read_bytes()
    made = {
        "half.jsonl.gz": (gzip.compress(os.urandom(9) + row)[:-12], "half.jsonl.gz is cut short"),
        "half.jsonl.zst": (zstandard.ZstdCompressor().compress(row * 9)[:-3], "half.jsonl.zst is cut short"),
        "not.jsonl.gz": (b"no gzip at all", "not.jsonl.gz is not a whole .gz file"),
        "half.parquet": (whole[:-9], "half.parquet is not a whole parquet file"),
        "other.parquet": (whole, "has no column text; it has body, n"),
        "half.arrow": (b"ARROW1\0\0nonsense", "half.arrow is not a whole arrow file"),
        "field.jsonl": (
            row + b'{"txt": 1}\n',
            "the line at byte 3013 is not a JSON object with a field text; it has txt",
        ),
        "number.jsonl": (b'{"text": 5}', "the field text of the line at byte 0 is not a string"),
        "list.jsonl": (b"[1, 2]\n", "the line at byte 0 is not a JSON object"),
        "deep.jsonl": (b'{"text": ' + b"[" * 100_000 + b"\n", "the line at byte 0 is not a JSON object"),
        "half.jsonl": (b'{"text": "\\ud83d"}', "half of a surrogate pair"),
        "bytes.jsonl": (row + b'{"text": "\xff"}', "bytes.jsonl is not UTF-8 at byte 3023"),
        "none.jsonl": (b"\n\n", "the inputs hold no document"),
        "pressed.parquet.gz": (gzip.compress(b"x"), "is a compressed parquet file. Uncompress it: gunzip"),
    }
    for name, (data, _) in made.items():
        (tmp_path / name).write_bytes(data)
    return {name: (tmp_path / name, said) for name, (_, said) in made.items()}


def test_damaged_inputs_are_refused_in_one_sentence(tokenizer: str, tmp_path: Path) -> None:
    for name, (path, said) in _damaged(tmp_path).items():
        with pytest.raises(Refusal) as refused:
            prepare([str(path)], tokenizer, tmp_path / "out", workers=1)
        assert said in refused.value.sentence(), name
        assert "\n" not in refused.value.sentence()
        assert not (tmp_path / "out.bin").exists()
    with pytest.raises(Refusal, match="has a row without body"):
        prepare([str(tmp_path / "other.parquet")], tokenizer, tmp_path / "out", field="body")
    made = prepare([str(tmp_path / "other.parquet")], tokenizer, tmp_path / "out", field="body", skip_bad=True)
    assert (made.documents, made.skipped) == (1, 1)


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(Refusal, match=r"parquet and arrow files need the package pyarrow.*"):
        reading.divide(find([str(tmp_path / "a.parquet")]).sources, "text")


def test_formats_are_guessed_and_readmes_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "c4.json.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "one.json").write_text('{\n "a": 1}')
    found = find([str(tmp_path)])
    assert [(s.path.name, s.format, s.compression) for s in found.sources] == [("c4.json.gz", Format.JSONL, "gz")]
    assert [path.name for path in found.left_out] == ["README.md", "one.json"]
    assert found.describe().startswith("1 jsonl.gz file (")
    assert [s.format for s in find([str(tmp_path)], format=Format.TEXT).sources] == [Format.TEXT] * 3
    splits = tmp_path / "splits"
    (splits / "train").mkdir(parents=True)
    (splits / "dataset_dict.json").write_text("{}")
    with pytest.raises(Refusal, match="holds several splits"):
        find([str(splits)])


def test_training_checks_the_manifest(tokenizer: str, lines: Path, tmp_path: Path) -> None:
    prefix = str(tmp_path / "corpus")
    prepare([str(lines)], tokenizer, prefix)
    check_manifest(prefix, 600, tokenizer)
    check_manifest(prefix, 600, "")
    with pytest.raises(Refusal, match="holds the id 59., and the model has an embedding of 512"):
        check_manifest(prefix, 512, "")
    other = tmp_path / "other"
    train_tokenizer([str(lines)], other, 300)
    with pytest.raises(Refusal, match="was tokenized with .* is another"):
        check_manifest(prefix, 600, str(other))
    index = Path(prefix + ".idx")
    index.write_bytes(index.read_bytes() + b"more")
    with pytest.raises(Refusal, match=r"corpus.idx has .* bytes, and .*manifest.json says"):
        check_manifest(prefix, 600, "")
    for text in ("{}", "[]", "nonsense", '{"version": 1, "corpus": {"a": 1}}', "[" * 100_000):
        Path(prefix + ".manifest.json").write_text(text)
        with pytest.raises(Refusal, match="is not a manifest"):
            check_manifest(prefix, 600, "")
    Path(prefix + ".manifest.json").unlink()
    check_manifest(prefix, 512, "")


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
