"""``slipway data``: text to a tokenizer and to Megatron's .bin and .idx; a preview of instructions."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import Answer, Section, argument, command, command_group
from slipway.launch.cli.nemo import quiet
from slipway.launch.cli.printing import Style, Table, Terminal, note, plural
from slipway.launch.cli.progress import transfer_bar

if TYPE_CHECKING:
    from slipway.launch.data.documents import Format
    from slipway.launch.data.prepare import Prepared
    from slipway.launch.data.preview import Preview

data = command_group(
    __name__, Section.SETUP, "Turn text into Megatron's .bin and .idx files, and preview instructions."
)

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


@dataclass(frozen=True)
class Previewed(Answer):
    """The first examples of a file, and what is wrong with its lines."""

    result: Preview

    def as_json(self) -> dict[str, Any]:
        result = asdict(self.result) | {"path": str(self.result.path)}
        keys = ("reason", "lines", "first_line")
        return result | {"problems": [dict(zip(keys, problem, strict=True)) for problem in self.result.problems]}

    def show(self, terminal: Terminal) -> None:
        result = self.result
        for shown in result.shown:
            terminal.line(f"line {shown.line}: {shown.tokens} tokens, {shown.learned} learned", Style.BOLD)
            marks = ("", "") if terminal.colored else ("«", "»")
            terminal.parts(
                [
                    (marks[0] + part.text + marks[1], Style.GOOD) if part.learned else (part.text, Style.DIM)
                    for part in shown.parts
                ]
            )
            terminal.line()
        terminal.line(
            f"{result.path}: {plural(result.examples, 'example')} of up to {result.longest:,} tokens; "
            f"{result.learned:,} of {result.tokens:,} tokens are learned; packed, they fill "
            f"{plural(result.sequences, 'sequence')} of {result.seq_length:,} tokens to {result.filled:.0%}"
        )
        if result.problems:
            table = Table(("lines", "first", "what is wrong"), right=frozenset({0, 1}))
            for reason, count, first in result.problems:
                table.add(f"{count:,}", f"{first:,}", reason)
            terminal.table(table)

    def conclude(self) -> None:
        if self.result.problems:
            raise click.exceptions.Exit(1)


@command(Section.SETUP, name="preview", group=data)
@argument("path", "A .jsonl file, or a folder with training.jsonl.", metavar="FILE")
@click.option("--tokenizer", default="", metavar="FOLDER", help="A folder with a tokenizer.")
@click.option("--base", type=Path, metavar="BASE", help="A base, whose tokenizer is taken.")
@click.option("--seq-length", type=click.IntRange(min=2), default=4096, show_default=True, help="Tokens of a sequence.")
@click.option("--template", type=click.Choice(["auto", "chat", "plain"]), default="auto", help="As data.template.")
@click.option("--chat-template", default="", metavar="FILE", help="As data.chat_template.")
@click.option("--show", type=click.IntRange(min=0), default=3, show_default=True, help="Examples to show.")
def preview(
    path: str, tokenizer: str, base: Path | None, seq_length: int, template: str, chat_template: str, show: int
) -> Answer:
    """Show what finetuning learns of a file of instructions.

    Of each example the tokens that the loss counts are green; where there is no colour they stand in «». Exits with 1
    if a line is no example, or too long.
    """
    from slipway.configs import Data, Refusal
    from slipway.configs.schema import Template
    from slipway.recipes.runtime.base import tokenizer_of_base

    if not tokenizer and base is None:
        raise Refusal("neither --tokenizer nor --base is given", "Give the base that is finetuned, or a tokenizer.")
    with quiet():
        from slipway.launch.data.preview import preview as read

        chosen = Data(name="instructions", template=Template(template), chat_template=chat_template)
        return Previewed(read(path, tokenizer or tokenizer_of_base(base or Path()), chosen, seq_length, show))
