"""The standing server: takes runs into its queue and does them on the agents that connect, until it is stopped."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedloom.core import files, local_token
from fedloom.core.addresses import with_port
from fedloom.core.protocols import Sink
from fedloom.server.access.membership import Membership, enroll_administrator, open_security
from fedloom.server.app import Server
from fedloom.server.fleet.coordinator import GRACE_S, HEARTBEAT_S, LOST_AFTER_S
from fedloom.server.fleet_runs import FleetRuns
from fedloom.server.metrics_port import metrics_sink, open_metrics_port
from fedloom.server.run_queue import RunQueue

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """How a server is started."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 7070
    """Port to listen on; 0 takes a free one."""
    state: Path = Path("fedloom-server")
    """Folder of the queue and of all runs."""
    metrics_port: int | None = None
    """Port of Prometheus's `/metrics`; None disables it."""
    token: str = ""
    """Shared secret every caller must show, on a server without members; if empty, one is made in the state folder, and
    programs of the same user on this machine find it."""
    members: Membership | None = None
    """Enrolment of callers, who must then be members, over TLS; None for a server without members."""
    max_concurrent_runs: int = 1
    """Maximum number of concurrent runs."""
    heartbeat_s: float = HEARTBEAT_S
    """Seconds between an agent's heartbeats."""
    lost_after_s: float = LOST_AFTER_S
    """Seconds of silence after which an attached agent counts as disconnected."""
    grace_s: float = GRACE_S
    """Seconds a disconnected agent may take to reconnect before its groups are reassigned."""


def serve(
    settings: ServerSettings,
    sinks: Sequence[Sink] = (),
    *,
    on_ready: Callable[[str], None] = lambda address: None,
    on_finished: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C: take runs, do them on the agents that connect.

    A server started on the state folder of one that was stopped or killed resumes its runs. What it writes is
    readable by its own user only.

    Args:
        settings: how it is started.
        sinks: take every event of every run.
        on_ready: called with the address once the server listens.
        on_finished: called with a run's folder when the run has ended.

    Raises:
        UsageError: other users can read the state folder, another server works on it, or a port is taken.
    """
    from fedloom.server.access.listening import raise_descriptor_limit

    files.restrict_new_files()
    raise_descriptor_limit()
    files.require_private_folder(settings.state, "the server's state folder")
    metrics = None if settings.metrics_port is None else metrics_sink()
    heard = (*sinks, *(() if metrics is None else (metrics,)))
    with _server(settings, heard) as server, contextlib.ExitStack() as stack:
        with _queue(server, settings, heard, on_finished) as runs:
            port = _listen(server, runs, settings, stack)
            exposed = None if metrics is None else open_metrics_port(metrics, settings.host, settings.metrics_port or 0)
            runs.start()
            stop = _stop_on_signals()
            on_ready(with_port(settings.host, port))
            stop.wait()
            _log.info("shutting down: the running run stops after its current step and stays queued")
            if exposed is not None:
                exposed.shutdown()
        server.coordinator.close(come_back=True)


def _server(settings: ServerSettings, sinks: Sequence[Sink]) -> Server:
    """Return the server's parts; memory is shared only with agents that it trusts as itself."""
    return Server(
        sinks,
        shared_memory=settings.members is None,
        heartbeat_s=settings.heartbeat_s,
        lost_after_s=settings.lost_after_s,
        grace_s=settings.grace_s,
        by_labels=True,
    )


@contextlib.contextmanager
def _queue(
    server: Server, settings: ServerSettings, sinks: Sequence[Sink], on_finished: Callable[[Path], None]
) -> Iterator[RunQueue]:
    """Open the queue of a server's runs; it is closed, and waits for its threads, afterwards."""
    fleet = FleetRuns(
        server=server,
        address=f"{settings.host}:{settings.port}",
        sinks=sinks,
        shares_code=settings.members is None,
        on_finished=on_finished,
    )
    with contextlib.closing(
        RunQueue(
            settings.state,
            lambda store, emit, stop: fleet.run(store, emit, stop, runs.owner(store.run_id)),
            max_concurrent_runs=settings.max_concurrent_runs,
            clock=server.clock,
        )
    ) as runs:
        runs.on_deleted, server.coordinator.deleted_runs = server.coordinator.drop_states, runs.deleted_for
        yield runs


def _listen(server: Server, runs: RunQueue, settings: ServerSettings, stack: contextlib.ExitStack) -> int:
    """Open the ports of a server with or without members; returns the port for its callers."""
    if settings.members is None:
        return _listen_with_token(server, runs, settings)
    state, host = settings.state, settings.host
    security = stack.enter_context(open_security(state, host, settings.members, server.clock))
    port = server.listen(host, settings.port, runs=runs, security=security, enroll_port=settings.members.enroll_port)
    enroll_administrator(security, state / "admin", host, port)
    _log.info(
        "devices join at %s, the address in join tokens (change it with --address); create one with: "
        "fedloom token create --name NAME --identity %s",
        security.join_address(server.enroll_port),
        state / "admin",
    )
    return port


def _listen_with_token(server: Server, runs: RunQueue, settings: ServerSettings) -> int:
    """Open the port of a server without members; a token is made unless the settings have one."""
    made = "" if settings.token else local_token.own_token(settings.state)
    port = server.listen(settings.host, settings.port, token=settings.token or made, runs=runs)
    if made:
        _log_token_file(local_token.publish(port, made), settings.state)
    return port


def _log_token_file(published: Path | None, state: Path) -> None:
    """Log where the server's token is, and who finds it by itself."""
    file = state / local_token.FILE
    if published is None:
        _log.info("the token for callers is in %s; pass it to them with --token-file", file)
        return
    _log.info(
        "the token for callers is in %s; this user's commands on this machine find it, others need --token-file",
        file,
    )


def _stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and Ctrl-C set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
