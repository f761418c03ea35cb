"""The ``slipway`` command: it finds its commands in the folder ``commands`` and imports only the one that runs."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from typing import NoReturn

import click

from slipway.launch.cli import commands
from slipway.launch.cli.answer import COMMANDS, CONTEXT, Section

SUMMARY = "Check, plan, rehearse, launch and measure NeMo 2.0 / Megatron-Core training recipes."
INTERRUPTED = 130  # exit code of a shell's command that was interrupted: 128 + SIGINT


class Commands(click.Group):
    """Every module of ``slipway.launch.cli.commands`` is a command, named after it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return command_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in command_names():
            return None
        importlib.import_module(f"{commands.__name__}.{cmd_name.replace('-', '_')}")
        return COMMANDS[cmd_name].command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Click's own, with the nearest names where there is no such command."""
        if args and not args[0].startswith("-") and args[0] not in command_names():
            import difflib

            near = difflib.get_close_matches(args[0], command_names(), n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the commands below the headings of their sections."""
        found = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        limit = formatter.width - 6 - max(map(len, found))
        for section in Section:
            rows = [
                (name, command.get_short_help_str(limit).removesuffix("."))
                for name, command in found.items()
                if command is not None and COMMANDS[name].section is section
            ]
            if rows:
                with formatter.section(section.value):
                    formatter.write_dl(rows)


def command_names() -> list[str]:
    """The names of all commands, without importing any."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__))


def _print_version(ctx: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        from importlib.metadata import version

        print(f"slipway {version('nemo-slipway')}")
        ctx.exit()


def _print_commands(ctx: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        print("\n".join(command_names()))
        ctx.exit()


@click.group(cls=Commands, help=SUMMARY, no_args_is_help=True, context_settings=CONTEXT)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
@click.option(
    "--commands",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_commands,
    help="Print the commands' names, one a line.",
)
def app() -> None:
    pass


def _fail(message: str, code: int) -> NoReturn:
    from slipway.configs.errors import in_brief

    print(f"slipway: {in_brief(message)}", file=sys.stderr)
    sys.exit(code)


def main() -> NoReturn:
    """Run the command: exit code 0 for success, 1 for a failure, 2 for a refusal, which is one sentence on stderr."""
    try:
        sys.exit(
            app.main(prog_name="slipway", standalone_mode=False) or 0
        )  # click.exceptions.Exit is returned as its code
    except click.exceptions.NoArgsIsHelpError as help:
        print(help.format_message())
        sys.exit(0)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "slipway"
        _fail(f"{' '.join(error.format_message().split())} See {where} --help.", 2)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except Exception as error:
        from slipway.configs import Refusal

        if isinstance(error, Refusal):
            _fail(error.sentence(), 2)
        if isinstance(error, OSError) and error.filename is not None:  # a path that was given, or a full disk
            _fail(f"{error.filename}: {error.strerror}", 2)
        import traceback

        traceback.print_exc()
        _fail("internal error: please report it with the traceback above", 1)
