"""The application: all commands put together, those of plug-ins included, and what becomes of an error."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click
import typer

from fedloom import __version__
from fedloom.cli import (
    audit,
    experiments,
    fleet,
    forgetting,
    joining,
    members,
    reports,
    results,
    resuming,
    serving,
    study,
    tokens,
)
from fedloom.cli.contributed import Commands
from fedloom.cli.terminal import DEBUG_HELP, Verb, print_error, remember_debug
from fedloom.core.errors import FedloomError
from fedloom.reporting.plain import escape_unprintable

app = typer.Typer(
    name="fedloom",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    suggest_commands=False,  # click suggests the nearest, too
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedloom {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Show the version.", callback=_show_version, is_eager=True),
    debug: bool = typer.Option(False, "--debug", help=DEBUG_HELP, callback=remember_debug, is_eager=True),
) -> None:
    """Write a federated experiment once; run it in one process, on a Ray cluster, on enrolled devices."""


for panel, commands in {
    "Experiments": (
        experiments.run, resuming.resume, experiments.check, study.study, experiments.list_names, experiments.show,
    ),
    "Results": (reports.report, reports.compare, reports.replay, forgetting.forget),
    "Servers and devices": (
        serving.serve, joining.join, serving.client, fleet.submit, fleet.runs, fleet.watch, fleet.stop, results.fetch,
        results.logs, results.delete, fleet.nodes, audit.audit,
    ),
}.items():  # fmt: skip
    for command in commands:
        name = "list" if command is experiments.list_names else command.__name__
        app.command(name, cls=Verb, rich_help_panel=panel)(command)

app.add_typer(tokens.token, name="token", rich_help_panel="Servers and devices")
app.add_typer(members.node, name="node", rich_help_panel="Servers and devices")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: arguments after `fedloom`; by default the process's own.

    Returns:
        The exit code: 0 done, 2 wrong usage or configuration, 1 the run failed, 130 interrupted.
    """
    escape_unprintable(sys.stdout)
    escape_unprintable(sys.stderr)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are reported by fedloom itself
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = {"debug": bool(os.environ.get("FEDLOOM_DEBUG", "").strip("0"))}
    try:
        code = app(given, prog_name="fedloom", standalone_mode=False, obj=debug)
    except FedloomError as exc:
        return _failed(exc, str(exc) or type(exc).__name__, exc.exit_code, debug["debug"])
    except click.exceptions.NoArgsIsHelpError as exc:
        return exc.exit_code  # the help has been shown
    except click.UsageError as exc:
        command = exc.ctx.command_path if exc.ctx else "fedloom"
        return _failed(exc, f"{exc.format_message()}\nTry: {command} --help", exc.exit_code, debug["debug"])
    except click.ClickException as exc:
        return _failed(exc, exc.format_message(), exc.exit_code, debug["debug"])
    except click.Abort as exc:
        return _failed(exc, "interrupted", 130, debug["debug"])
    except BrokenPipeError:
        # The reader (`| head`) has closed the pipe; the interpreter's last flush must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as exc:
        if exc.filename is None or exc.strerror is None:
            return _failed(exc, f"{type(exc).__name__}: {exc}", 1, debug["debug"])
        message = (
            f"{exc.filename}: {exc.strerror}. Check that it exists, that this user may write to it, and that there is "
            "space. --out names "
            "the run's folder, FEDLOOM_CACHE that of prepared data, TMPDIR that of temporary files"
        )
        return _failed(exc, message, 1, debug["debug"])
    except Exception as exc:
        message = f"internal error: {type(exc).__name__}: {exc}\nThis is a bug in fedloom; --debug shows the traceback."
        return _failed(exc, message, 1, debug["debug"])
    if code == 130:  # typer's answer to Ctrl-C, which it keeps to itself
        print_error("interrupted")
    return code if isinstance(code, int) else 0


def _failed(exc: BaseException, message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(exc)
    print_error(message)
    return code
