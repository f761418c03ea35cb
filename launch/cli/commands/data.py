"""``slipway data``: text to a tokenizer and to Megatron's .bin and .idx, what they hold; a preview of instructions."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import OUT_PATH, Answer, Section, argument, command, command_group
from slipway.launch.cli.nemo import quiet
from slipway.launch.cli.printing import Style, Table, Terminal, note, plural
from slipway.launch.cli.progress import transfer_bar
from slipway.launch.cli.quantities import in_tokens

if TYPE_CHECKING:
    from slipway.launch.data.blend import Reading
    from slipway.launch.data.documents import Format
    from slipway.launch.data.inspect import Ids, Inspection
    from slipway.launch.data.prepare import Prepared
    from slipway.launch.data.preview import Preview

data = command_group(__name__, Section.SETUP, "Prepare text for training, and preview instructions.")

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
@click.option("--out", type=OUT_PATH, required=True, metavar="FOLDER", help="Where to write tokenizer.json.")
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


BAR_COLUMNS = 40  # of the longest bar of a histogram
EXCERPT_CHARACTERS = 300  # of a document that is printed


@dataclass(frozen=True)
class Inspected(Answer):
    """What a prefix holds."""

    found: Inspection

    def as_json(self) -> dict[str, Any]:
        return asdict(self.found)

    def show(self, terminal: Terminal) -> None:
        found, lengths, ids = self.found, self.found.lengths, self.found.ids
        counts = f"{plural(found.documents, 'document')}, {found.tokens:,} tokens ({found.token_type})"
        if found.sequences != found.documents:
            counts += f", {plural(found.sequences, 'sequence')}"
        terminal.line(f"{found.prefix}: {counts}", Style.BOLD)
        middle = f"median {lengths.median:,}, mean {lengths.mean:,.0f}, 90 % up to {lengths.p90:,}"
        terminal.field("lengths", f"{lengths.smallest:,} to {lengths.largest:,} tokens; {middle}")
        most = max(count for _, _, count in lengths.bins)
        for low, high, count in lengths.bins:
            bar = "█" * round(BAR_COLUMNS * count / most) or "▏" * bool(count)
            terminal.line(f"  {low:>11,} to {high - 1:>11,}  {count:>13,}  {bar}")
        terminal.field("ids", self._ids(ids))
        copies = found.duplicates
        share = f"{copies.copies / copies.compared:.2%} are copies of an earlier one"
        terminal.field("copies", f"of {copies.compared:,} compared, {share} ({copies.token_share:.2%} of the tokens)")
        if found.manifest:
            manifest = found.manifest
            terminal.field("made of", f"{manifest.corpus.source_formats} by {manifest.engine}")
            terminal.field("command", manifest.command)
        if found.ended is not None:
            terminal.field("ends", f"{found.ended:.2%} of the sequences end with the end-of-document token")
        for number, text in enumerate(found.first, 1):
            cut = "..." if len(text) > EXCERPT_CHARACTERS else ""
            terminal.field(f"text {number}", json.dumps(text[:EXCERPT_CHARACTERS], ensure_ascii=False) + cut)
        if not found.tokenizer:
            terminal.line("Nothing is decoded without a tokenizer: give --tokenizer FOLDER.")

    def _ids(self, ids: Ids) -> str:
        of = f" of {self.found.vocabulary:,}" if self.found.vocabulary else ""
        part = "" if ids.read_tokens == self.found.tokens else f", in {ids.read_tokens:,} of the tokens"
        range_ = f"{ids.smallest:,} to {ids.largest:,}; {ids.distinct:,}{of} occur{part}"
        beyond = self.found.vocabulary is not None and ids.largest >= self.found.vocabulary
        wrong = "; the tokenizer does not have the largest" if beyond else ""
        return f"{range_}; unigram entropy {ids.unigram_entropy:.3f} nats per token{wrong}"


@command(Section.SETUP, name="inspect", group=data)
@argument("prefix", "The path of a .bin/.idx pair without its ending.")
@click.option("--tokenizer", default="", metavar="FOLDER", help="To decode documents; by default the manifest's.")
@click.option("--documents", type=click.IntRange(min=0), default=3, show_default=True, help="How many to decode.")
@click.option("--verify", is_flag=True, help="Compare the files' SHA-256 with the manifest's.")
def inspect(prefix: str, tokenizer: str, documents: int, verify: bool) -> Answer:
    """Show what PREFIX.bin and PREFIX.idx hold.

    Documents, tokens, lengths, ids, copies, and the first documents as text. Of a corpus of more than 2 billion tokens,
    ids are read in a sample; of more than a million sequences, copies are.
    """
    from slipway.launch.data.inspect import inspect as read

    with transfer_bar("reading") as bar:
        task = bar.add_task("", total=None, visible=False)
        found = read(
            prefix.removesuffix(".bin").removesuffix(".idx"),
            tokenizer,
            documents,
            verify=verify,
            progress=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
        )
    return Inspected(found)


@dataclass(frozen=True)
class Blended(Answer):
    """How often a schedule reads each source of a blend."""

    rows: list[Reading]
    tokens: int

    @property
    def paths(self) -> str:
        """The blend as ``data.paths`` takes it."""
        return "data.paths={" + ", ".join(f"{row.prefix}: {row.share:.6g}" for row in self.rows) + "}"

    def as_json(self) -> dict[str, Any]:
        rows = [asdict(row) | {"epochs": row.epochs} for row in self.rows]
        return {"tokens": self.tokens, "sources": rows, "paths": self.paths}

    def show(self, terminal: Terminal) -> None:
        from slipway.launch.data.blend import MANY_EPOCHS

        table = Table(("source", "tokens", "share", "read", "epochs"), right=frozenset(range(1, 5)))
        for row in self.rows:
            read = in_tokens(round(row.read))
            table.add(row.prefix, in_tokens(int(row.tokens)), f"{row.share:.2%}", read, f"{row.epochs:,.2f}")
        terminal.table(table)
        most = max(self.rows, key=lambda row: row.epochs)
        if most.epochs > MANY_EPOCHS:
            text = f"{most.prefix} is read {most.epochs:,.1f} times; up to {MANY_EPOCHS:.0f} times, repeated data train"
            terminal.line(f"{text} about as well as new data. --max-epochs {MANY_EPOCHS:.0f} lowers its share.")
        terminal.line(shlex.quote(self.paths))


@command(Section.SETUP, name="blend", group=data)
@argument("sources", "Prefixes, or each after its weight: 0.3 A 0.7 B.", nargs=-1, required=True)
@click.option("--tokens", required=True, metavar="N", help="Tokens that the run reads, such as 15T, 300B or 1e9.")
@click.option("--split", default="1,0,0", show_default=True, help="data.split: its first share is trained on.")
@click.option("--max-epochs", type=float, help="Read no source more often; the others get its share.")
def blend(sources: tuple[str, ...], tokens: str, split: str, max_epochs: float | None) -> Answer:
    """Show how often N tokens read each source of a blend.

    Without weights, each source is read in proportion to its size. The last line is the key that trains on the blend.
    """
    from slipway.configs import Refusal
    from slipway.configs.blend import sources as parsed
    from slipway.configs.schema.stages import amount
    from slipway.launch.data.blend import capped, readings, trained_tokens

    try:
        needed = amount(tokens)
    except ValueError:
        raise Refusal(f"--tokens {tokens} is not a number of tokens", "Write it as 15T, 300B or 1e9.") from None
    found = parsed(sources, "SOURCES")
    rows = readings(found, trained_tokens(found, split), needed)
    return Blended(capped(rows, max_epochs) if max_epochs is not None else rows, needed)
