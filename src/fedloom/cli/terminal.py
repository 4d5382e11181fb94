"""Shared by commands: consoles on the right stream, error messages, the `--debug` switch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperOption

from fedloom.reporting.plain import harmless

_FILE_WIDTH = 1000
"""Columns of a file or a pipe: wide, so that grep sees whole lines."""
DEBUG_HELP = "Show the traceback of an error (as FEDLOOM_DEBUG=1 does)."


class Verb(TyperCommand):
    """A command that takes `--debug` at any position."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with_debug(self)


def with_debug(command: click.Command) -> click.Command:
    """Add `--debug` to a command; to those below it where it is a group of some."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            with_debug(below)
        return command
    command.params.append(
        TyperOption(
            param_decls=["--debug"],
            is_flag=True,
            expose_value=False,
            is_eager=True,  # so that the errors of other options are covered too
            callback=remember_debug,
            help=DEBUG_HELP,
        )
    )
    return command


def remember_debug(context: typer.Context, parameter: typer.CallbackParam, value: bool) -> None:
    """Store the switch where `main` finds it, even if the command fails."""
    if value:
        context.ensure_object(dict)["debug"] = True


def output(to_stderr: bool = False) -> Console:
    """Return a console on stdout, or on stderr if stdout is reserved for JSON. Text is never markup."""
    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() else _FILE_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def print_error(message: str) -> None:
    """Print one message on stderr; only its first word is coloured, and only in a terminal."""
    text = Text("fedloom: ", style="bold red")
    text.append(harmless(message), style="not bold default")
    output(to_stderr=True).print(text, soft_wrap=True)


def print_line(text: str, *, err: bool = False) -> None:
    """Print a line with words of a server, on stdout unless stated otherwise."""
    typer.echo(harmless(text), err=err)


def print_table(console: Console, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of words."""
    table = Table(box=None, header_style="bold", padding=(0, 3, 0, 0))
    for name in head:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    console.print(table)


def print_warning(message: str) -> None:
    """Print one message on stderr that does not end the command."""
    output(to_stderr=True).print(Text(f"fedloom: warning: {harmless(message)}"), soft_wrap=True)


def print_notice(message: str) -> None:
    """Print one notice on stderr."""
    output(to_stderr=True).print(Text(harmless(message)), soft_wrap=True)
