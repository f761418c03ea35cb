"""``slipway data``: text to a tokenizer and to Megatron's .bin and .idx."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import Answer, Section, argument, command, command_group
from slipway.launch.cli.printing import Terminal, note, plural
from slipway.launch.cli.progress import transfer_bar

if TYPE_CHECKING:
    from slipway.launch.data.documents import Format
    from slipway.launch.data.prepare import Prepared

data = command_group(__name__, Section.SETUP, "Turn text into Megatron's .bin and .idx files.")

CORPUS = "Text, .jsonl, .parquet or .arrow files, also .gz and .zst, or folders of them."


def corpus_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a corpus is read."""
    for option in (
        click.option("--skip-bad", is_flag=True, help="Leave out documents that are not UTF-8 text, and count them."),
        click.option("--pattern", default="*", show_default=True, help="Which file names to take from folders."),
        click.option(
            "--format",
            type=click.Choice(["auto", "text", "jsonl", "parquet", "arrow"]),
            default="auto",
            show_default=True,
            help="How the files hold documents; auto: by their names, and .json by its first line.",
        ),
        click.option("--field", default="text", show_default=True, help="Of the text, in a line or a table."),
    ):
        function = option(function)
    return function


def _format(name: str) -> Format | None:
    from slipway.launch.data.documents import Format

    return None if name == "auto" else Format(name)


@dataclass(frozen=True)
class Trained(Answer):
    """The tokenizer that was written."""

    folder: Path
    vocab_size: int

    def as_json(self) -> dict[str, Any]:
        return {"out": str(self.folder), "vocab_size": self.vocab_size}

    def show(self, terminal: Terminal) -> None:
        terminal.line(f"{self.folder}: {self.vocab_size} ids")


@command(Section.SETUP, name="tokenizer", group=data)
@argument("files", CORPUS, nargs=-1, required=True)
@click.option("--out", type=Path, required=True, metavar="FOLDER", help="Where to write tokenizer.json.")
@click.option("--vocab-size", type=int, default=32000, show_default=True, help="Number of ids.")
@corpus_options
def tokenizer(
    files: tuple[str, ...], out: Path, vocab_size: int, pattern: str, field: str, format: str, skip_bad: bool
) -> Answer:
    """Train a byte-level BPE tokenizer."""
    from slipway.launch.data.tokenizer import train_tokenizer

    size = train_tokenizer(
        list(files), out, vocab_size, pattern=pattern, format=_format(format), field=field, skip_bad=skip_bad
    )
    return Trained(out, size)


@dataclass(frozen=True)
class Tokenized(Answer):
    """The corpus that was written."""

    result: Prepared

    def as_json(self) -> dict[str, Any]:
        return asdict(self.result)

    def show(self, terminal: Terminal) -> None:
        result, prefix = self.result, self.result.prefix
        skipped = f", {plural(result.skipped, 'document')} left out" if result.skipped else ""
        contents = f"{plural(result.documents, 'document')}, {result.tokens:,} tokens"
        terminal.line(f"{prefix}.bin, {prefix}.idx, {prefix}.manifest.json: {contents}{skipped}")
        terminal.line(f"unigram entropy {result.unigram_entropy:.3f} nats per token")
        if result.left_out:
            files = plural(len(result.left_out), "text file")
            terminal.line(f"{files} beside files of documents not read, such as {result.left_out[0]}")


@command(Section.SETUP, name="prepare", group=data)
@argument("files", CORPUS, nargs=-1, required=True)
@click.option("--tokenizer", required=True, metavar="FOLDER", help="The folder that holds tokenizer.json.")
@click.option("--out", required=True, metavar="PREFIX", help="Write PREFIX.bin, PREFIX.idx and PREFIX.manifest.json.")
@click.option("--workers", type=click.IntRange(min=1), help="Number of processes; all cores if not given.")
@click.option(
    "--append-eod/--no-append-eod",
    default=True,
    show_default=True,
    help="End documents with the end-of-document token.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "tokenizers", "gigatoken"]),
    default="auto",
    show_default=True,
    help="What makes the ids; auto: gigatoken where it is installed and gives the same ids as tokenizers.",
)
@corpus_options
def prepare(
    files: tuple[str, ...],
    tokenizer: str,
    out: str,
    workers: int | None,
    append_eod: bool,
    engine: str,
    pattern: str,
    field: str,
    format: str,
    skip_bad: bool,
) -> Answer:
    """Tokenize text into PREFIX.bin and PREFIX.idx.

    It runs in parallel, in bounded memory, and resumes where it was interrupted. A manifest lies beside the two files:
    counts, hashes, the tokenizer and the command. Training checks it.
    """
    from slipway.launch.data.encoders import Engine
    from slipway.launch.data.prepare import Options
    from slipway.launch.data.prepare import prepare as tokenize

    options = Options(
        field=field,
        format=_format(format),
        pattern=pattern,
        append_eod=append_eod,
        skip_bad=skip_bad,
        engine=Engine(engine),
        workers=workers,
    )
    with transfer_bar("tokenizing") as bar:
        task = bar.add_task("", total=None, visible=False)
        result = tokenize(
            list(files),
            tokenizer,
            out,
            options,
            command=shlex.join(["slipway", *sys.argv[1:]]),
            say=note,
            progress=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
        )
    return Tokenized(result)
