"""`cli.md`: every command with its arguments and options, from the application itself."""

from __future__ import annotations

import inspect

import click
import typer

from fedloom.cli.app import app
from fedloom.cli.contributed import Promised
from fedloom.cli.reference import variables
from fedloom.cli.reference.markdown import code, document, table


def render() -> str:
    """Return the whole page."""
    return document(
        "Command line",
        "Exit codes: 0 done; 2 wrong usage or configuration; 1 the run failed; 130 interrupted, and resumable. Errors "
        "are one message on stderr; `--debug` or `FEDLOOM_DEBUG=1` adds the traceback.",
        "`fedloom --version` prints the version.",
        *_command("", typer.main.get_command(app)),
        "## Environment variables",
        variables.render(),
    )


def _command(name: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=f"fedloom {name}")
    if isinstance(command, click.Group):
        return [
            part
            for below in command.list_commands(context)
            if (each := _loaded(command.get_command(context, below))) is not None
            for part in _command(f"{name} {below}".strip(), each)
        ]
    usage = " ".join([f"fedloom {name}", *command.collect_usage_pieces(context)])
    parameters = [each for each in command.get_params(context) if "--help" not in each.opts]
    rows = [_row(each, context) for each in parameters]
    return [
        f"## fedloom {name}",
        f"```\n{usage}\n```",
        inspect.cleandoc(command.help or "").partition("\f")[0],
        table(("argument or option", "default", "meaning"), rows),
    ]


def _loaded(command: click.Command | None) -> click.Command | None:
    """Return a command as it runs; None for those contributed by installed packages."""
    if isinstance(command, Promised):
        return command.load() if command.bundled else None
    return command


def _row(parameter: click.Parameter, context: click.Context) -> tuple[str, str, str]:
    meaning = str(getattr(parameter, "help", None) or "")
    if isinstance(parameter, click.Argument):
        return code(parameter.make_metavar(context)), "" if not parameter.required else "**required**", meaning
    takes = (
        ""
        if isinstance(parameter, click.Option) and (parameter.is_flag or parameter.count)
        else f" {parameter.make_metavar(context)}"
    )
    return code(", ".join(parameter.opts) + takes), _default(parameter), meaning


def _default(parameter: click.Parameter) -> str:
    if parameter.required:
        return "**required**"
    if isinstance(parameter, click.Option) and parameter.count:
        return ""
    value = parameter.default() if callable(parameter.default) else parameter.default
    shown = value is not None and value is not False and value != [] and "UNSET" not in repr(value)
    return code(str(value)) if shown else ""
