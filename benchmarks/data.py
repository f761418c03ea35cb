"""How fast text is tokenized, and in how much memory, beside Megatron-LM's own tools/preprocess_data.py.

Every contender reads the same .jsonl file with the same tokenizer and number of processes, one after the other, and
their outputs are compared byte for byte. The corpus is the text of the files in this environment, repeated as often as
needed; the tokenizer is trained on its beginning. CPU seconds say what the work costs, whatever else the machine does.

Megatron-LM is a checkout of tag core_v0.15.3 (commit 309ffca6a405). A checkout of its main branch that has
tools/preprocess_data_fast.py, which uses gigatoken, can be given beside it with --fast; it needs triton.

python -m benchmarks.data MEGATRON_LM [--megabytes 1000] [--workers 2]

With --interrupt, Slipway alone prepares the corpus, compressed with zstd as one frame: whole, and again killed with
SIGKILL when half of it is written, and continued.

python -m benchmarks.data --interrupt --megabytes 2000
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from slipway.launch.data.encoders import Encoder, Engine, load

POLL_S = 0.2
TRAINED_ON_BYTES = 30_000_000
ALONE_BYTES = 20_000_000  # of the corpus, for the speed of a tokenizer alone
SUFFIXES = (".py", ".md", ".rst", ".txt")

# Megatron-LM's imports, on a machine without its other dependencies and on Python 3.11. Its files stay as they are.
START = """
import os, runpy, sys, typing, typing_extensions
sys.modules["nvidia_resiliency_ext"] = None
typing.override = typing_extensions.override
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Run:
    """One contender's time and memory."""

    name: str
    wall_s: float
    cpu_s: float
    peak_gib: float  # of all its processes, shared pages counted once
    output: Path  # without .bin


def documents() -> Iterator[str]:
    """The text of the files of this environment, again and again."""
    root = sysconfig.get_paths()["purelib"]
    while True:
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                if name.endswith(SUFFIXES):
                    try:
                        text = Path(folder, name).read_text()
                    except (UnicodeDecodeError, OSError):
                        continue
                    if text:
                        yield text


def write_corpus(path: Path, size_bytes: int) -> None:
    """Write a .jsonl file of about ``size_bytes``."""
    written = 0
    with path.open("w") as file:
        for text in documents():
            line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
            file.write(line)
            written += len(line.encode())
            if written >= size_bytes:
                return


def slipway(*words: str) -> list[str]:
    return [sys.executable, "-m", "slipway.launch.cli", "data", *words]


def memory_bytes(process: int) -> int:
    """The proportional memory of a process and its descendants, in bytes."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
        except OSError:
            continue
    total, todo = 0, [process]
    while todo:
        one = todo.pop()
        todo += parents.get(one, [])
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total * 1024


def measured(
    name: str, command: list[str], output: Path, folder: Path | None = None, until: Callable[[], bool] = lambda: False
) -> Run:
    """Run a command to its end, or kill it once ``until`` says so, and read its time and memory."""
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore",
        "TOKENIZERS_PARALLELISM": "false",
    }
    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
        peak = 0
        while True:
            process, status, usage = os.wait4(child.pid, os.WNOHANG)
            if process:
                break
            peak = max(peak, memory_bytes(child.pid))
            if until():
                child.kill()
            time.sleep(POLL_S)
        wall = time.monotonic() - start
        if status and not until():
            log.seek(0)
            sys.exit(f"{name} failed:\n{log.read()[-3000:].decode(errors='replace')}")
    return Run(name, wall, usage.ru_utime + usage.ru_stime, peak / 2**30, output)


def contenders(given: argparse.Namespace, corpus: Path, tokenizer: Path) -> Iterator[Callable[[], Run]]:
    """Each measurement, in the order of the table."""
    work = corpus.parent
    shared = ["--input", str(corpus), "--tokenizer-type", "HuggingFaceTokenizer", "--append-eod"]
    shared += ["--tokenizer-model", str(tokenizer)]
    workers = ["--workers", str(given.workers)]

    def megatron(name: str, folder: Path, tool: str, *more: str) -> Run:
        out = work / name.replace(" ", "-")
        command = [sys.executable, "-c", START, f"tools/{tool}", *shared, "--output-prefix", str(out), *more]
        return measured(name, command, Path(f"{out}_text_document"), folder)

    def ours(engine: Engine) -> Run:
        out = work / engine.value
        words = slipway("prepare", str(corpus), "--tokenizer", str(tokenizer), "--out", str(out), *workers)
        return measured(f"slipway, {engine.value}", [*words, "--engine", engine.value], out)

    yield lambda: megatron("Megatron-LM", given.megatron, "preprocess_data.py", *workers)
    if given.fast:
        yield lambda: megatron("Megatron-LM fast", given.fast, "preprocess_data_fast.py", "--use-gigatoken")
    yield lambda: ours(Engine.TOKENIZERS)
    yield lambda: ours(Engine.GIGATOKEN)


def alone(encoder: Encoder, texts: list[str]) -> float:
    """Tokens that an engine makes a CPU second, with nothing around it."""
    batches = [texts[i : i + 100] for i in range(0, len(texts), 100)]
    for batch in batches[: len(batches) // 2]:
        encoder.encode(batch)
    start = time.process_time()
    tokens = sum(len(encoder.encode(batch)[0]) for batch in batches)
    return tokens / (time.process_time() - start)


def beginning(corpus: Path) -> tuple[list[bytes], list[str]]:
    """The first lines of the corpus, and their texts."""
    lines, size = [], 0
    with corpus.open("rb") as file:
        for line in file:
            lines.append(line)
            size += len(line)
            if size >= ALONE_BYTES:
                break
    return lines, [json.loads(line)["text"] for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("megatron", type=Path, nargs="?", metavar="MEGATRON_LM", help="a checkout of Megatron-LM")
    parser.add_argument("--interrupt", action="store_true", help="kill Slipway's own work, and continue it")
    parser.add_argument("--fast", type=Path, help="a checkout that has tools/preprocess_data_fast.py")
    parser.add_argument("--megabytes", type=int, default=200, help="size of the corpus")
    parser.add_argument("--workers", type=int, default=2, help="processes of each contender")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="a folder with free space")
    given = parser.parse_args()
    if not given.megatron and not given.interrupt:
        parser.error("give a checkout of Megatron-LM, or --interrupt")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    work = given.folder / "slipway-data"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        (report_interrupted if given.interrupt else report)(given, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def written(given: argparse.Namespace, work: Path) -> tuple[Path, Path]:
    """The corpus, and a tokenizer that is trained on its beginning."""
    corpus, sample, tokenizer = work / "corpus.jsonl", work / "sample.jsonl", work / "tokenizer"
    write_corpus(corpus, given.megabytes * 1_000_000)
    write_corpus(sample, TRAINED_ON_BYTES)
    train = slipway("tokenizer", str(sample), "--out", str(tokenizer), "--vocab-size", "32000")
    subprocess.run(train, check=True, stdout=subprocess.DEVNULL)
    return corpus, tokenizer


def report_interrupted(given: argparse.Namespace, work: Path) -> None:
    """Print the table of --interrupt."""
    corpus, tokenizer = written(given, work)
    packed = corpus.with_suffix(".jsonl.zst")
    with corpus.open("rb") as source, packed.open("wb") as target:
        zstandard.ZstdCompressor().copy_stream(source, target)
    print(f"{corpus.stat().st_size / 1e6:,.0f} MB in {packed.stat().st_size / 1e6:,.0f} MB, {given.workers} workers\n")
    corpus.unlink()

    def run(name: str, out: Path, until: Callable[[], bool] = lambda: False) -> Run:
        words = ["prepare", str(packed), "--tokenizer", str(tokenizer), "--out", str(out)]
        return measured(name, slipway(*words, "--workers", str(given.workers)), out, until=until)

    whole = run("whole", work / "whole")
    half = (work / "whole.bin").stat().st_size // 2
    tokens = work / "killed.parts" / "tokens"
    killed = run("killed at half", work / "killed", lambda: tokens.is_file() and tokens.stat().st_size >= half)
    left = sum(path.stat().st_size for path in tokens.parent.iterdir())
    continued = run("continued", work / "killed")
    print("| | wall, s | CPU, s | peak, GiB | written, MB |\n|---|---|---|---|---|")
    size = half * 2
    for one, count in ((whole, size), (killed, left), (continued, size)):
        print(f"| {one.name} | {one.wall_s:,.1f} | {one.cpu_s:,.1f} | {one.peak_gib:.2f} | {count / 1e6:,.0f} |")
    files = ((f"{whole.output}.{kind}", f"{continued.output}.{kind}") for kind in ("bin", "idx"))
    print("\nsame bytes: " + ("yes" if all(filecmp.cmp(*pair, shallow=False) for pair in files) else "NO"))


def report(given: argparse.Namespace, work: Path) -> None:
    """Print the table of all contenders."""
    corpus, tokenizer = written(given, work)
    size = corpus.stat().st_size
    print(f"{size / 1e6:,.0f} MB, 32,000 ids, {given.workers} workers\n")
    print("| | wall, s | CPU, s | tokens a CPU second | peak, GiB | CPU against Megatron-LM | wall | same bytes |")
    print("|---|---|---|---|---|---|---|---|")
    first: Run | None = None
    for contender in contenders(given, corpus, tokenizer):
        run = contender()
        first = first or run
        tokens = run.output.with_name(run.output.name + ".bin").stat().st_size // 2
        files = [(Path(f"{run.output}.{kind}"), Path(f"{first.output}.{kind}")) for kind in ("bin", "idx")]
        cells = [
            run.name,
            f"{run.wall_s:,.1f}",
            f"{run.cpu_s:,.1f}",
            f"{tokens / run.cpu_s:,.0f}",
            f"{run.peak_gib:.2f}",
            f"{first.cpu_s / run.cpu_s:.1f}x",
            f"{first.wall_s / run.wall_s:.1f}x",
            "yes" if all(filecmp.cmp(*pair, shallow=False) for pair in files) else "NO",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\n{tokens:,} tokens. Alone, on one core:")
    lines, texts = beginning(corpus)
    for engine in (Engine.TOKENIZERS, Engine.GIGATOKEN):
        print(f"- {engine.value}: {alone(load(str(tokenizer), engine), texts):,.0f} tokens/s")
    start = time.process_time()
    for line in lines:
        json.loads(line)
    print(f"- reading JSON: {ALONE_BYTES / 1e6 / (time.process_time() - start):,.0f} MB/s")


if __name__ == "__main__":
    main()
