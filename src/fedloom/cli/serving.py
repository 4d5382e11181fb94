"""Commands that run until they are stopped: the server, and a client's agent."""

from __future__ import annotations

import ipaddress
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedloom.cli.identities import NodeConfig, Proxy
from fedloom.cli.reaching import Server, TokenFile, read_token
from fedloom.cli.terminal import output
from fedloom.core.addresses import DeviceAddress
from fedloom.core.errors import UsageError

LogForm = Annotated[
    Literal["text", "json"],
    typer.Option(help="Lines for people, or one JSON object per line with run, round and node."),
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
        token=read_token(token_file),
        members=members,
        max_concurrent_runs=max_concurrent_runs,
    )
    standing.serve(
        settings,
        [LogSink()],
        on_ready=lambda address: console.print(f"listening on {address}, runs in {state}"),
        on_finished=lambda folder: console.print(f"report: {write_report(folder, with_code=True)}", soft_wrap=True),
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
    node_config: NodeConfig = [],  # noqa: B006  # typer reads the default, nobody changes it
    proxy: Proxy = "",
    log: LogForm = "text",
) -> None:
    """Work for the server this machine has joined, until stopped."""
    from fedloom.client.node_values import parse
    from fedloom.client.supervisor import supervised

    _log_to_stderr(log)
    if server is not None and (identity is not None or policy is not None):
        raise UsageError("--server is for servers without members; omit it, or omit --identity and --policy")
    if server is None and (name is not None or token_file is not None):
        raise UsageError("--name and --token-file need --server; a joined node has its name from its token")
    values = parse(node_config)
    with supervised():
        from fedloom.client import app
        from fedloom.core.identity import default_folder

        if server is not None:
            app.run_client(server, name=name, token=read_token(token_file, server), proxy=proxy, node_values=values)
        else:
            app.run_member(identity or default_folder("node"), policy, proxy=proxy, node_values=values)


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
