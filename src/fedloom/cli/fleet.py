"""Commands for a standing server and the devices enrolled with it."""

from __future__ import annotations

import ipaddress
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from fedloom.cli.experiments import Json, Settings, Target, check_finite, print_summary
from fedloom.cli.members import IdentityFolder, Proxy, find_identity
from fedloom.cli.terminal import output, print_notice, print_table
from fedloom.core.addresses import DeviceAddress
from fedloom.core.errors import UsageError
from fedloom.reporting.quantities import bytes_text, seconds_text

if TYPE_CHECKING:
    from fedloom.client.control import ControlClient
    from fedloom.core.history import RunSummary
    from fedloom.core.records import JsonObject

T = TypeVar("T")

Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        envvar="FEDLOOM_SERVER",
        help="Address of a server started with --insecure. A joined server's address is in the identity.",
    ),
]
LogForm = Annotated[
    Literal["text", "json"],
    typer.Option(help="Lines for people, or one JSON object per line with run, round and node."),
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id; see `fedloom runs`.", show_default=False)]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        envvar="FEDLOOM_TOKEN_FILE",
        help="File whose only line is the shared token of a server started with --insecure. By default the "
        "server creates one, and this user's commands on its machine find it.",
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
        typer.Option(min=0, max=65535, metavar="N", help="Port of the Prometheus metrics; disabled by default."),
    ] = None,
    enroll_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="N", help="Port for enrolment; by default --port + 1."),
    ] = None,
    address: Annotated[
        str,
        typer.Option(
            metavar="HOST[:PORT,PORT]",
            help="Host by which devices reach this server, and its ports for members and for joining as devices see "
            "them; written to join tokens.",
        ),
    ] = "",
    certificate_days: Annotated[
        float, typer.Option(min=0.001, max=3650, metavar="DAYS", help="Validity of members' certificates.")
    ] = 30.0,
    max_concurrent_runs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum number of concurrent runs.")
    ] = 1,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE|FOLDER",
            help="Code that users' runs may use: a file or folder (by its content), a module, a setting word by word. "
            "May be repeated.",
        ),
    ] = None,
    log: LogForm = "text",
    insecure: Annotated[
        int,
        typer.Option(
            "--insecure",
            count=True,
            help="Disable enrolment and TLS. Listens on localhost only; repeat the flag to override.",
        ),
    ] = 0,
    token_file: TokenFile = None,
) -> None:
    """Run an aggregation server that queues runs and waits for clients, until it is stopped."""
    from fedloom.reporting.report import write_report
    from fedloom.server import standing
    from fedloom.server.access.membership import Membership
    from fedloom.server.log import LogSink
    from fedloom.server.standing import ServerSettings

    _check_insecure(insecure, host, token_file)
    _log_to_stderr(log)
    console = output()
    members = None
    if not insecure:
        joining = enroll_port if enroll_port is not None else (port + 1 if port else 0)
        members = Membership(
            enroll_port=joining,
            address=DeviceAddress.parse(address),
            certificate_days=certificate_days,
            allowed=tuple(allow or ()),
        )
    settings = ServerSettings(
        host=host,
        port=port,
        state=state,
        metrics_port=metrics_port,
        token=_token(token_file),
        members=members,
        max_concurrent_runs=max_concurrent_runs,
    )
    standing.serve(
        settings,
        [LogSink()],
        on_ready=lambda address: console.print(f"listening on {address}, runs in {state}"),
        on_finished=lambda folder: console.print(f"report: {write_report(folder)}", soft_wrap=True),
    )


def client(
    identity: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="FEDLOOM_IDENTITY",
            help="Folder of the node's identity; by default ~/.config/fedloom/node.",
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="The node's policy; by default policy.toml in its identity's folder.",
        ),
    ] = None,
    server: Server = None,
    name: Annotated[str | None, typer.Option(help="With --server: the node's name; by default the host name.")] = None,
    token_file: TokenFile = None,
    proxy: Proxy = "",
    log: LogForm = "text",
) -> None:
    """Work for the server this machine has joined, until stopped."""
    from fedloom.client.supervisor import supervised

    _log_to_stderr(log)
    if server is not None and (identity is not None or policy is not None):
        raise UsageError("--server is for servers without members; omit it, or omit --identity and --policy")
    if server is None and (name is not None or token_file is not None):
        raise UsageError("--name and --token-file need --server; a joined node has its name from its token")
    with supervised():
        from fedloom.client import app
        from fedloom.core.identity import default_folder

        if server is not None:
            app.run_client(server, name=name, token=_token(token_file, server), proxy=proxy)
        else:
            app.run_member(identity or default_folder("node"), policy, proxy=proxy)


def submit(
    target: Target,
    server: Server = None,
    settings: Settings = [],  # noqa: B006  # typer reads the default, nobody changes it
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the run until it has ended, over restarts of the server, too.")
    ] = False,
    identity: IdentityFolder = None,
    token_file: TokenFile = None,
    json: Annotated[bool, typer.Option("--json", help="With --wait: print the summary as one JSON object.")] = False,
) -> None:
    """Queue an experiment on a server; prints the run's id."""
    from fedloom import api
    from fedloom.client.control import ControlClient
    from fedloom.client.leftovers import ending_what_it_starts
    from fedloom.rehearsal import check_submission

    if json and not wait:
        raise UsageError("--json is the summary of a run that has ended; it needs --wait")
    experiment = api.load(target, settings)
    if not experiment.of_sites and experiment.reads_data_of_nodes():
        typer.echo(
            f"note: the workload reads $DATA, which is each node's own, and clients = {experiment.clients}: every node "
            f"splits its $DATA among {experiment.clients} virtual clients, and works for any of them. With "
            'clients = "nodes" each node is one client, with all of its data',
            err=True,
        )
    with ending_what_it_starts():
        check_submission(experiment)
    with reach(ControlClient, server, identity, token_file) as control:
        run_id = control.submit(experiment, print_notice)
        typer.echo(run_id, err=json)
        if wait:
            _wait_for(control, run_id, json)


def runs(server: Server = None, identity: IdentityFolder = None, token_file: TokenFile = None) -> None:
    """List your runs on a server; all of them for an administrator."""
    from fedloom.client.control import ControlClient

    with reach(ControlClient, server, identity, token_file) as control:
        rows = [
            (
                row.run_id,
                row.name,
                row.owner,
                row.status,
                f"{row.rounds_done}/{row.rounds or 'open'}",
                " ".join(row.error.split()),
            )
            for row in control.runs()
        ]
    print_table(output(), ("run", "name", "owner", "status", "rounds", "error"), rows)


def watch(
    run: RunId, server: Server = None, identity: IdentityFolder = None, token_file: TokenFile = None, json: Json = False
) -> None:
    """Follow a run on a server until it ends. Stopping the watch does not stop the run."""
    from fedloom.client.control import ControlClient
    from fedloom.core.errors import RunFailed

    with reach(ControlClient, server, identity, token_file) as control:
        summary = _shown(control.watch(run), json)
    if summary is None:
        raise RunFailed(f"the stream of run {run!r} ended before the run did; check its status with `fedloom runs`")
    _end_as(summary, json)


def _shown(events: Iterator[JsonObject], json: bool) -> RunSummary | None:
    """Show events of a run; returns how it ended, None if they do not say."""
    from fedloom.reporting.console import ConsoleSink
    from fedloom.reporting.replay import event_of

    sink = ConsoleSink(output(to_stderr=json))
    try:
        for event in events:
            sink.write(event_of(event))
    finally:
        sink.close()
    return sink.summary


def _wait_for(control: ControlClient, run: str, json: bool) -> None:
    """Follow a run of this user's to its end, which decides the exit code."""
    from fedloom.client.following import Follower
    from fedloom.core.errors import Interrupted, RunFailed

    follower = Follower(control, run, print_notice)
    try:
        summary = _shown(follower.events(), json)
    except KeyboardInterrupt:
        print_notice(f"the run continues: fedloom watch {run}, or fedloom stop {run}")
        raise
    if summary is not None:
        _end_as(summary, json)
    elif follower.row is not None and follower.row.status == "interrupted":
        raise Interrupted(f"run {run!r} was stopped before it began")
    else:
        raise RunFailed(f"run {run!r} failed: {follower.row.error if follower.row is not None else ''}")


def _end_as(summary: RunSummary, json: bool) -> None:
    """Print how a run on a server ended, and end likewise."""
    from fedloom.core.errors import Interrupted, RunFailed

    print_summary(summary, json, elsewhere=True)
    if summary.status == "interrupted":
        raise Interrupted(f"run {summary.run_id!r} was stopped")
    if summary.status != "done":
        raise RunFailed(summary.error or f"run {summary.run_id!r} failed")
    check_finite(summary)


def stop(run: RunId, server: Server = None, identity: IdentityFolder = None, token_file: TokenFile = None) -> None:
    """Stop a run on a server; its checkpoints remain."""
    from fedloom.client.control import ControlClient

    with reach(ControlClient, server, identity, token_file) as control:
        typer.echo(f"{run} was {control.stop(run)}")


def nodes(server: Server = None, identity: IdentityFolder = None, token_file: TokenFile = None) -> None:
    """List the clients enrolled with a server."""
    from fedloom.client.control import ControlClient

    with reach(ControlClient, server, identity, token_file) as control:
        rows = [
            (
                row.node,
                row.state,
                f"{row.groups_done:,}",
                bytes_text(row.wire_bytes_up),
                bytes_text(row.wire_bytes_down),
                seconds_text(row.last_seen_s) + " ago",
                ", ".join(f"{key}={value}" for key, value in row.labels.items()),
                ", ".join(f"{key} {value}" for key, value in row.facts.items()),
            )
            for row in control.nodes()
        ]
    print_table(output(), ("node", "state", "groups", "up", "down", "last seen", "labels", "facts"), rows)


def reach(client: Callable[..., T], server: str | None, identity: Path | None, token_file: Path | None) -> T:
    """Connect to the joined server, or to one without members.

    Args:
        client: makes the connection, of an address and a `token` or an `identity`.
        server, identity, token_file: the options.
    """
    if server is not None:
        return client(server, token=_token(token_file, server))
    if token_file is not None:
        raise UsageError("--token-file needs --server; a server that was joined knows its members by certificate")
    known = find_identity(identity)
    return client(known.address, identity=known)


def _check_insecure(insecure: int, host: str, token_file: Path | None) -> None:
    if not insecure and token_file is not None:
        raise UsageError("--token-file is for servers with --insecure; members join with `fedloom token create`")
    if insecure == 1 and not _is_loopback(host):
        raise UsageError(
            f"--insecure on {host}: all traffic would be unencrypted, and anyone who can reach the port "
            "could take part. Omit --host, or repeat --insecure to override"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _log_to_stderr(form: str) -> None:
    """Log to stderr, with the time."""
    from fedloom.core.logs import JsonFormatter, TextFormatter

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("fedloom").setLevel(logging.INFO)


def _token(file: Path | None, server: str = "") -> str:
    """Read the secret in a file; without one, that of this user's server on this machine, otherwise empty."""
    from fedloom.core import local_token

    if file is None:
        return local_token.find(server)
    token = file.read_text(encoding="utf-8").strip()
    if not token or len(token.split()) > 1:
        raise UsageError(f"--token-file {str(file)!r}: expected one word, the token")
    return token
