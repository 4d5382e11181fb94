"""Commands for a standing server and the devices enrolled with it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedloom.cli.experiments import Json, Settings, Target, print_summary
from fedloom.cli.terminal import output, print_table
from fedloom.core.errors import UsageError
from fedloom.reporting.quantities import bytes_text, seconds_text

if TYPE_CHECKING:
    from fedloom.client.control import ControlClient

Server = Annotated[
    str,
    typer.Option(
        "--server", metavar="HOST:PORT", envvar="FEDLOOM_SERVER", help="The server's address.", show_default=False
    ),
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id; `fedloom runs` has them.", show_default=False)]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        envvar="FEDLOOM_TOKEN_FILE",
        help="File whose only line is the token that admits to the server.",
    ),
]


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port to listen on; 0 takes a free one.")
    ] = 7070,
    state: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the server's registry and runs.")] = Path(
        "fedloom-server"
    ),
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="N", help="Port of the Prometheus metrics; none where not given."),
    ] = None,
    token_file: TokenFile = None,
) -> None:
    """Run an aggregation server that queues runs and waits for clients, until it is stopped."""
    from fedloom.reporting.console import ConsoleSink
    from fedloom.reporting.report import write_report
    from fedloom.server import app

    _log_to_stderr()
    console = output()
    app.serve(
        host,
        port,
        state=state,
        metrics_port=metrics_port,
        token=_token(token_file),
        sinks=[ConsoleSink(console)],
        on_ready=lambda address: console.print(f"listening on {address}, runs in {state}"),
        on_finished=lambda folder: console.print(f"report: {write_report(folder)}", soft_wrap=True),
    )


def client(
    server: Server,
    name: Annotated[str | None, typer.Option(help="This device's name; the host's where not given.")] = None,
    token_file: TokenFile = None,
) -> None:
    """Enrol this machine with a server and work for it until stopped."""
    from fedloom.client import app

    _log_to_stderr()
    app.run_client(server, name=name, token=_token(token_file))


def submit(
    target: Target,
    server: Server,
    settings: Settings = [],  # noqa: B006  # typer reads the default, nobody changes it
    token_file: TokenFile = None,
) -> None:
    """Queue an experiment on a server; prints the run's id."""
    from fedloom.simulation import api

    experiment = api.load(target, settings)
    with _control(server, token_file) as control:
        typer.echo(control.submit(experiment))


def runs(server: Server, token_file: TokenFile = None) -> None:
    """List a server's runs."""
    with _control(server, token_file) as control:
        rows = [
            (row.run_id, row.name, row.status, f"{row.rounds_done}/{row.rounds}", row.error.partition("\n")[0])
            for row in control.runs()
        ]
    print_table(output(), ("run", "name", "status", "rounds", "error"), rows)


def watch(run: RunId, server: Server, token_file: TokenFile = None, json: Json = False) -> None:
    """Follow a run on a server until it ends. Stopping the watch does not stop the run."""
    from fedloom.core.errors import Interrupted, RunFailed
    from fedloom.reporting.console import ConsoleSink
    from fedloom.reporting.replay import event_of

    sink = ConsoleSink(output(to_stderr=json))
    try:
        with _control(server, token_file) as control:
            for event in control.watch(run):
                sink.write(event_of(event))
    finally:
        sink.close()
    if sink.summary is None:
        raise RunFailed(f"{server}: the stream of run {run!r} ended before the run did; `fedloom runs` says how it is")
    print_summary(sink.summary, json)
    if sink.summary.status == "interrupted":
        raise Interrupted(f"run {run!r} was stopped")
    if sink.summary.status != "done":
        raise RunFailed(sink.summary.error or f"run {run!r} failed")


def stop(run: RunId, server: Server, token_file: TokenFile = None) -> None:
    """Stop a run on a server; what it has saved is kept."""
    with _control(server, token_file) as control:
        typer.echo(f"{run} was {control.stop(run)}")


def nodes(server: Server, token_file: TokenFile = None) -> None:
    """List the clients enrolled with a server."""
    with _control(server, token_file) as control:
        rows = [
            (
                row.node,
                row.state,
                f"{row.groups_done:,}",
                bytes_text(row.wire_bytes_up),
                bytes_text(row.wire_bytes_down),
                seconds_text(row.last_seen_s) + " ago",
                ", ".join(f"{key} {value}" for key, value in row.facts.items()),
            )
            for row in control.nodes()
        ]
    print_table(output(), ("node", "state", "groups", "up", "down", "last seen", "facts"), rows)


def _control(server: str, token_file: Path | None) -> ControlClient:
    from fedloom.client.control import ControlClient

    return ControlClient(server, token=_token(token_file))


def _log_to_stderr() -> None:
    """What long-running commands have to say besides their output, with the time."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("fedloom").setLevel(logging.INFO)


def _token(file: Path | None) -> str:
    """The secret in a file; empty where there is no file."""
    if file is None:
        return ""
    token = file.read_text(encoding="utf-8").strip()
    if not token or len(token.split()) > 1:
        raise UsageError(f"--token-file {str(file)!r}: expected one word, the token, and nothing else")
    return token
