"""Commands that plug-ins contribute: shown from their files' docstrings, imported when one is used."""

from __future__ import annotations

from collections.abc import Mapping

import click
import typer
from typer.core import TyperGroup

from fedloom.cli.terminal import with_debug
from fedloom.core import contributed
from fedloom.core.contributed import Contributed
from fedloom.core.errors import PluginInvalid, UsageError
from fedloom.core.text import nearest

_PANEL = "Methods"


class Promised(click.Command):
    """A contributed command before it is imported: name and summary."""

    def __init__(self, name: str, sources: list[Contributed]) -> None:
        super().__init__(name, help=sources[0].summary)
        self.rich_help_panel = _PANEL
        self._sources = sources

    @property
    def bundled(self) -> bool:
        """Return whether it comes with fedloom."""
        return all(each.bundled for each in self._sources)

    def load(self) -> click.Command:
        """Import the command.

        Raises:
            UsageError: several plug-ins have a command by this name.
            PackageMissing: it needs an optional package that is not installed.
            PluginInvalid: it cannot be imported or built.
        """
        if len(self._sources) > 1:
            found = ", ".join(str(each.path) for each in self._sources)
            raise UsageError(f"fedloom {self.name}: several plug-ins have a command by this name: {found}")
        (source,) = self._sources
        built = source.call("build_command")
        if not isinstance(built, typer.Typer):
            raise PluginInvalid(f"{source.path}: build_command returned {built!r}, expected a typer.Typer")
        if not (built.registered_commands or built.registered_groups):
            raise PluginInvalid(f"{source.path}: build_command returned a typer.Typer without a command")
        return with_debug(_command(built, source.name))


class Commands(TyperGroup):
    """The platform's own commands, and those of plug-ins; where both have one of a name it is the platform's."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        own = super().list_commands(ctx)
        return [*own, *(name for name in _promised() if name not in own)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or _promised().get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = nearest(args[0], self.list_commands(ctx))
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {near!r}?" if near is not None else ""))
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, Promised) else command, rest


def _command(built: typer.Typer, name: str) -> click.Command:
    """Return a plug-in's commands as a command called `name`: a group, unless it has one command and no callback."""
    shell = typer.Typer(add_completion=False, suggest_commands=False)
    if built.registered_callback or built.registered_groups or len(built.registered_commands) > 1:
        shell.add_typer(built, name=name)
        return typer.main.get_group(shell).commands[name]
    shell.registered_commands.extend(built.registered_commands)
    command = typer.main.get_command(shell)
    command.name = name
    return command


def _promised() -> Mapping[str, Promised]:
    """Contributed commands by name, in order."""
    sources = dict[str, list[Contributed]]()
    for each in contributed.commands():
        sources.setdefault(each.name, []).append(each)
    return {name: Promised(name, found) for name, found in sources.items()}
