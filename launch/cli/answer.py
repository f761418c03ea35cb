"""What a command is made of: it computes an :class:`Answer`, and one function prints every answer, as text or as JSON.

A module in ``launch/cli/commands`` is a command of its own name::

    @command(Section.RECIPES)
    @recipe_arguments
    def check(name: str, overrides: list[str]) -> Answer:
        '''The first sentence is the command's line in ``slipway --help``.'''

It imports what it needs inside the function, so that ``slipway --help`` and the other commands do not wait for it.
"""

from __future__ import annotations

import abc
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import click

from slipway.launch.cli.printing import Terminal, print_json

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class Section(Enum):
    """The headings of ``slipway --help``, in the order in which they are printed."""

    RECIPES = "Recipes"
    PLANNING = "Before a run"
    RUNNING = "Runs"
    RESULTS = "Results"
    SETUP = "Data and machines"


class Registered(NamedTuple):
    """A command and its heading."""

    command: click.Command
    section: Section


COMMANDS: dict[str, Registered] = {}  # the commands whose modules have been imported


class Answer(abc.ABC):
    """What a command found."""

    @abc.abstractmethod
    def as_json(self) -> Any:
        """What ``--json`` prints."""

    @abc.abstractmethod
    def show(self, terminal: Terminal) -> None:
        """Print the answer for a reader."""

    def conclude(self) -> None:  # noqa: B027 - most answers have nothing to conclude
        """Do what follows the printed answer: raise a Refusal (exit code 2), or ``click.exceptions.Exit(1)``."""


@dataclass(frozen=True)
class Written(Answer):
    """The path that was written, if any."""

    path: Path | None = None

    def as_json(self) -> Any:
        return None if self.path is None else str(self.path)

    def show(self, terminal: Terminal) -> None:
        if self.path is not None:
            print(self.path)  # a path is printed whole: it may be passed on


def deliver(answer: Answer, as_json: bool) -> None:
    """Print an answer and conclude it."""
    if as_json:
        print_json(answer.as_json())
    else:
        answer.show(Terminal())
    answer.conclude()


def command(
    section: Section, *, name: str = "", json: bool = True, group: click.Group | None = None
) -> Callable[[Callable[..., Answer]], click.Command]:
    """Turn a function that returns an Answer into a command, named after its module or ``name``.

    Args:
        section: its heading in ``slipway --help``.
        name: the command's name, where it is not the module's.
        json: whether it takes ``--json``.
        group: the command group that it belongs to, where it is a command of a command.
    """

    def decorate(function: Callable[..., Answer]) -> click.Command:
        own = name or function.__module__.rpartition(".")[2].replace("_", "-")

        @functools.wraps(function)
        def run(as_json: bool = False, **options: Any) -> None:
            deliver(function(**options), as_json)

        made = click.command(own, cls=_Command, help=inspect.getdoc(function), context_settings=CONTEXT)(
            click.option("--json", "as_json", is_flag=True, help="Print JSON.")(run) if json else run
        )
        if group is not None:
            group.add_command(made)
        else:
            _register(made, section)
        return made

    return decorate


def command_group(module: str, section: Section, help: str) -> click.Group:
    """A command that has commands of its own, named after its module: ``command_group(__name__, ...)``."""
    made = click.Group(module.rpartition(".")[2], help=help, no_args_is_help=True, context_settings=CONTEXT)
    _register(made, section)
    return made


def _register(made: click.Command, section: Section) -> None:
    COMMANDS[made.name or ""] = Registered(made, section)


class _OutPath(click.ParamType):
    """A path that a command writes to."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path; a value without a name is an error of usage."""
        if not str(value).strip():
            self.fail("it is empty: give a path to write to.", param, ctx)
        return Path(value)


OUT_PATH = _OutPath()


class _Argument(click.Argument):
    """A positional argument with a description, which click has only since 8.5 (NVIDIA's images bring older ones)."""

    def __init__(self, *words: Any, description: str = "", **options: Any) -> None:
        super().__init__(*words, **options)
        self.description = description


class _Command(click.Command):
    """A command whose help describes its arguments."""

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print nothing: click 8.5 calls this before the options, and older versions do not call it."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        arguments = [p for p in self.get_params(ctx) if isinstance(p, _Argument)]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([(p.make_metavar(ctx), p.description) for p in arguments])
        super().format_options(ctx, formatter)


def argument(name: str, description: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A positional argument, described in the command's help."""
    return click.argument(name, cls=_Argument, description=description, **options)


def recipe_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments NAME and KEY=VALUE of every command that takes a recipe."""
    return argument("name", "A recipe; slipway list shows them.", metavar="NAME")(overrides_argument(function))


def overrides_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """The overrides of a recipe, as a tuple of ``key=value``."""
    described = "Values of the recipe to change, for example gpu=h200 gpus=64 layout.tp=4."
    return argument("overrides", described, nargs=-1, metavar="[KEY=VALUE]...")(function)


def readable_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """The argument NAME of a command that takes a recipe, or a file of another tool."""
    described = "A recipe (slipway list shows them), or the path of a script, configuration, log or model."
    return argument("name", described, metavar="NAME|PATH")(function)


def settings_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--set NAME=VALUE``: values of a script's variables."""
    described = "Of a script: the value of a variable that only a shell could compute. May be repeated."
    return click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help=described)(function)
