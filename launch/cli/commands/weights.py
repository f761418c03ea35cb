"""``slipway weights``: from Hugging Face's folders to weights that training starts from, and back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import OUT_PATH, Answer, Section, argument, command, command_group
from slipway.launch.cli.nemo import quiet
from slipway.launch.cli.printing import Terminal
from slipway.launch.cli.progress import transfer_bar

if TYPE_CHECKING:
    from slipway.launch.weights.folder import Converted

weights = command_group(__name__, Section.RESULTS, "Convert weights from and to Hugging Face.")


@dataclass(frozen=True)
class Conversion(Answer):
    """The folder that was written."""

    out: Path
    done: Converted
    then: str = ""

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in dataclasses.asdict(self.done).items() if key != "recipes"}

    def show(self, terminal: Terminal) -> None:
        done = self.done
        size = f"{done.tensors:,} tensors, {done.bytes / 1e9:,.2f} GB"
        cost = f"{done.seconds:,.1f} s, at most {done.peak_rss_gib:.2f} GiB of memory"
        terminal.line(f"{self.out}: {done.family}, {size} in {cost}")
        if done.checksum:
            terminal.line(f"checksum of its tensors: {done.checksum}")
        if self.then:
            terminal.line(self.then)


@command(Section.RESULTS, name="import", group=weights)
@argument("folder", "A model's folder, or its name on the Hub if it is in the local cache.", type=Path)
@click.option("--out", type=OUT_PATH, required=True, metavar="BASE", help="The folder to write; it must not exist yet.")
def import_(folder: Path, out: Path) -> Answer:
    """Turn a Hugging Face model into weights that training starts from.

    Its tensors are read one at a time: the memory that it takes is that of the largest few, not of the model. Train
    from BASE with run.base=BASE, in any layout.
    """
    with quiet():
        from slipway.launch.weights.from_hugging_face import import_weights
    with _bar("importing") as progress:
        done = import_weights(folder, out, progress)
    if done.recipes:
        return Conversion(out, done, f"Train from it with: slipway launch {done.recipes[0]} run.base={out}")
    return Conversion(out, done, "No recipe has a model of these sizes; describe it in configs/model to train from it.")


@command(Section.RESULTS, name="export", group=weights)
@argument("source", "A run's folder, or one that import wrote.", metavar="RUN|BASE", type=Path)
@click.option(
    "--out", type=OUT_PATH, required=True, metavar="FOLDER", help="The folder to write; it must not exist yet."
)
@click.option("--dtype", default="", help="bfloat16, float16 or float32; the checkpoint's own type if not given.")
@click.option(
    "--adapter",
    type=click.Choice(["merged", "peft"]),
    help="Of a run that trained an adapter: merged into its base (the default), or by itself for PEFT.",
)
def export(source: Path, out: Path, dtype: str, adapter: str | None) -> Answer:
    """Turn a run's newest checkpoint into a folder that transformers loads."""
    with quiet():
        from slipway.launch.weights.to_hugging_face import export_weights
    with _bar("exporting") as progress:
        done = export_weights(source, out, dtype, progress, adapter or "")
    return Conversion(out, done)


@contextlib.contextmanager
def _bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """What a conversion calls with the bytes that are done and the total."""
    with transfer_bar(description) as bar:
        task = bar.add_task("", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
