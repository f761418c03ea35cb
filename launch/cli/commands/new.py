"""``slipway new``: a recipe of the user's own, from a model, a script or another recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import Answer, Section, argument, command, overrides_argument, settings_option
from slipway.launch.cli.printing import Style, Terminal

if TYPE_CHECKING:
    from slipway.configs import Resolved
    from slipway.launch.cli.readable import Readable
    from slipway.launch.own.recipe import Draft


@dataclass(frozen=True)
class Created(Answer):
    """The files of a new recipe."""

    draft: Draft
    files: list[Path]
    notes: list[str]
    described: str

    @property
    def donor(self) -> str:
        return self.draft.donor.recipe if self.draft.donor else ""

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.draft.name,
            "files": list(map(str, self.files)),
            "trained": self.draft.donor is not None,
            "class_of": self.donor,
            "notes": self.notes,
        }

    def show(self, terminal: Terminal) -> None:
        name = self.draft.name
        terminal.line(f"{name}: {self.described}", Style.BOLD)
        for path in self.files:
            terminal.field("written", str(path))
        if self.draft.donor:
            given = "the file's" if "optim" in self.draft.texts else f"that of {self.donor}, until you change it"
            terminal.field("trained", f"by the NeMo class of {self.donor}; optimizer: {given}")
        for note in self.notes:
            terminal.field("note", note, Style.WARNING)
        terminal.field("next", f"slipway check {name}")


@command(Section.RECIPES)
@argument("name", "The name of the new recipe.", metavar="NAME")
@overrides_argument
@click.option(
    "--from",
    "source",
    required=True,
    metavar="PATH|RECIPE",
    help="A Hugging Face config.json or folder, any file that slipway check reads, or a recipe.",
)
@settings_option
def new(name: str, overrides: tuple[str, ...], source: str, settings: tuple[str, ...]) -> Answer:
    """Make a recipe of your own from a model or a script.

    It is written to the folder that SLIPWAY_CONFIGS names, else to ./slipway, as files without code. list, check, plan,
    rehearse, launch and the nemo command know it by its name.
    """
    from slipway.launch.cli.readable import describe_model, readable
    from slipway.launch.own.recipe import draft, write

    found = readable(source, overrides, settings)
    resolved, families, notes = _to_train(name, found, Path(source))
    made = draft(name, resolved, source, families)
    if made.donor is None:
        notes.append("no recipe of ours trains such a model: it can be planned for by its name, and not trained")
    return Created(made, write(made), notes, describe_model(resolved.spec))


def _to_train(name: str, found: Readable, path: Path) -> tuple[Resolved, tuple[str, ...], list[str]]:
    """What was read, with every fact of a Hugging Face model; families that come first, and what to tell the user."""
    from slipway.configs import Refusal
    from slipway.launch.cli.nemo import quiet
    from slipway.launch.foreign.kinds import huggingface
    from slipway.launch.own.hugging_face import trained_model

    notes: list[str] = []
    resolved, reading = found.resolved, found.reading
    if reading is None:
        return resolved, (), notes
    if reading.unknown:
        notes.append(f"not understood, and not in the recipe: {', '.join(reading.unknown)}")
    if reading.not_modelled:
        notes.append(f"not modelled, and not in the recipe: {', '.join(reading.not_modelled)}")
    if reading.kind != huggingface.NAME:
        return resolved, (), notes
    try:
        with quiet():  # transformers imports torch
            trained = trained_model(path, name, resolved.spec.model.seq_length)
    except Refusal as refusal:
        return resolved, ("",), [*notes, refusal.sentence()]
    spec = resolved.spec
    given = {key: getattr(spec.model, key.removeprefix("model.")) for key in resolved.given if key.startswith("model.")}
    model = replace(trained.model, **{key.removeprefix("model."): value for key, value in given.items()})
    return replace(resolved, spec=replace(spec, model=model)), trained.families, notes
