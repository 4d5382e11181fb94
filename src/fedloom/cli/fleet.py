"""Commands for a standing server and the devices enrolled with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedloom.cli.experiments import Json, Settings, Target, check_finite, print_summary
from fedloom.cli.identities import IdentityFolder
from fedloom.cli.reaching import RunId, Server, TokenFile, reach
from fedloom.cli.terminal import output, print_line, print_notice, print_table
from fedloom.core.errors import UsageError
from fedloom.reporting.quantities import bytes_text, seconds_text

if TYPE_CHECKING:
    from fedloom.client.control import ControlClient
    from fedloom.core.history import RunSummary
    from fedloom.core.records import JsonObject


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
    from fedloom.core.provenance import provenance
    from fedloom.rehearsal import check_submission

    if json and not wait:
        raise UsageError("--json is the summary of a run that has ended; it needs --wait")
    experiment = api.load(target, settings, data_elsewhere=True)
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
        source = Path(target) if Path(target).exists() else None
        run_id = control.submit(experiment, print_notice, provenance(experiment, source).to_submit())
        print_line(run_id, err=json)
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
        print_line(f"{run} was {control.stop(run)}")


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
