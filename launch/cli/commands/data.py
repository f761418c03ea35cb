"""``slipway data``: text to a tokenizer and to Megatron's .bin and .idx."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import Answer, Section, argument, command, command_group
from slipway.launch.cli.printing import Terminal, plural
from slipway.launch.cli.progress import transfer_bar

if TYPE_CHECKING:
    from slipway.launch.data.prepare import Prepared

data = command_group(__name__, Section.SETUP, "Turn text into Megatron's .bin and .idx files.")


@dataclass(frozen=True)
class Trained(Answer):
    """The tokenizer that was written."""

    folder: Path
    vocab_size: int

    def as_json(self) -> dict[str, Any]:
        return {"out": str(self.folder), "vocab_size": self.vocab_size}

    def show(self, terminal: Terminal) -> None:
        terminal.line(f"{self.folder}: {self.vocab_size} ids")


@command(Section.SETUP, name="tokenizer", json=False, group=data)
@argument("files", "Text files, .jsonl files, or folders.", nargs=-1, required=True)
@click.option("--out", type=Path, required=True, metavar="FOLDER", help="Where to write tokenizer.json.")
@click.option("--vocab-size", type=int, default=32000, show_default=True, help="Number of ids.")
@click.option("--pattern", default="*", show_default=True, help="Which file names to take from folders.")
@click.option("--skip-bad", is_flag=True, help="Leave out files that are not UTF-8.")
def tokenizer(files: tuple[str, ...], out: Path, vocab_size: int, pattern: str, skip_bad: bool) -> Answer:
    """Train a byte-level BPE tokenizer."""
    from slipway.launch.data.tokenizer import train_tokenizer

    size = train_tokenizer(list(files), out, vocab_size, pattern=pattern, skip_bad=skip_bad)
    return Trained(out, size)


@dataclass(frozen=True)
class Tokenized(Answer):
    """The corpus that was written."""

    prefix: str
    result: Prepared

    def as_json(self) -> dict[str, Any]:
        return asdict(self.result)

    def show(self, terminal: Terminal) -> None:
        result = self.result
        left_out = f", {plural(result.skipped, 'file')} left out" if result.skipped else ""
        contents = f"{result.documents:,} documents, {result.tokens:,} tokens"
        terminal.line(f"{self.prefix}.bin, {self.prefix}.idx: {contents}{left_out}")
        terminal.line(f"unigram entropy {result.unigram_entropy:.3f} nats per token")


@command(Section.SETUP, name="prepare", group=data)
@argument("files", "Text files, .jsonl files with a text field, or folders.", nargs=-1, required=True)
@click.option("--tokenizer", required=True, metavar="FOLDER", help="The folder that holds tokenizer.json.")
@click.option("--out", required=True, metavar="PREFIX", help="Write PREFIX.bin and PREFIX.idx.")
@click.option("--workers", type=click.IntRange(min=1), help="Number of processes; all cores if not given.")
@click.option("--pattern", default="*", show_default=True, help="Which file names to take from folders.")
@click.option("--skip-bad", is_flag=True, help="Leave out files that are not UTF-8, and count them.")
def prepare(
    files: tuple[str, ...], tokenizer: str, out: str, workers: int | None, pattern: str, skip_bad: bool
) -> Answer:
    """Tokenize text into PREFIX.bin and PREFIX.idx.

    It runs in parallel and resumes where it was interrupted; both files are written atomically.
    """
    from slipway.launch.data.prepare import prepare as tokenize

    with transfer_bar("tokenizing") as bar:
        task = bar.add_task("", total=None, visible=False)
        result = tokenize(
            list(files),
            tokenizer,
            out,
            pattern=pattern,
            workers=workers,
            skip_bad=skip_bad,
            progress=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
        )
    return Tokenized(out, result)
