"""A whole aggregation server: the parts put together, for a simulation's own use or as a service."""

from __future__ import annotations

import contextlib
import logging
import platform
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fedloom.core import files, local_token
from fedloom.core.addresses import DeviceAddress, with_port
from fedloom.core.clock import SYSTEM_CLOCK, Clock
from fedloom.core.depot import Depot
from fedloom.core.errors import StorageFull, UsageError
from fedloom.core.events import Event, NodeChanged
from fedloom.core.extras import needed_by
from fedloom.core.history import RunSummary
from fedloom.core.identity import Identity, key_pem, make_key, pem
from fedloom.core.protocols import Sink
from fedloom.core.run_files import ANSWERS
from fedloom.server.access.authority import MEMBER_DAYS, Authority
from fedloom.server.access.members import Registry
from fedloom.server.access.submitted_code import save_code_here
from fedloom.server.fleet.coordinator import GRACE_S, HEARTBEAT_S, LOST_AFTER_S, Coordinator
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.server.rounds.run_services import FleetAccess, RuntimeInfo
from fedloom.server.rounds.session import run_session
from fedloom.server.run_queue import RunQueue
from fedloom.server.store.answer_journal import AnswerJournal
from fedloom.server.store.disk_run_store import DiskRunStore

if TYPE_CHECKING:
    from fedloom.server.access.enroll_service import Security
    from fedloom.server.metrics import Exposed, PrometheusSink

_log = logging.getLogger(__name__)

ADMINISTRATOR = "server-admin"
"""Name of the administrator whose identity is in the state folder."""
_ADMINISTRATOR_S = 10 * 365 * 86400.0
_ANYWHERE = ("0.0.0.0", "[::]", "::")


class Server:
    """Coordinator, payload store and, once `listen` is called, their gRPC service.

    Args:
        sinks: receive events of agents connecting and disconnecting.
        shared_memory: make a depot for agents on this host.
        heartbeat_s, lost_after_s, grace_s, by_labels: see `server.coordinator`.
        clock: the one clock of everything in it; runs get it from here.
    """

    def __init__(
        self,
        sinks: Sequence[Sink] = (),
        *,
        shared_memory: bool = True,
        heartbeat_s: float = HEARTBEAT_S,
        lost_after_s: float = LOST_AFTER_S,
        grace_s: float = GRACE_S,
        by_labels: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._sinks, self.clock = sinks, clock
        self.payloads = PayloadStore(_depot() if shared_memory else None)
        self.coordinator = Coordinator(
            self.payloads,
            self._on_node,
            heartbeat_s=heartbeat_s,
            lost_after_s=lost_after_s,
            grace_s=grace_s,
            by_labels=by_labels,
            clock=clock,
        )
        self.token = ""
        self.port = self.enroll_port = 0
        self._stop_listening: Callable[[], None] | None = None

    def listen(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        token: str = "",
        runs: RunQueue | None = None,
        security: Security | None = None,
        enroll_port: int = 0,
    ) -> int:
        """Listen on an address; returns the port. See `server.service.listen`."""
        from fedloom.server.access.listening import listen

        self.token = token
        listening = listen(self.coordinator, runs, host, port, token=token, security=security, enroll_port=enroll_port)
        self._stop_listening, self.port, self.enroll_port = listening.stop, listening.port, listening.enroll_port
        return self.port

    def close(self) -> None:
        """Send the agents away and give everything back."""
        self.coordinator.close()
        if self._stop_listening is not None:
            self._stop_listening()
        self.payloads.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _on_node(self, event: NodeChanged) -> None:
        for sink in self._sinks:
            sink.write(event)


def serve(
    host: str = "127.0.0.1",
    port: int = 7070,
    *,
    state: Path = Path("fedloom-server"),
    metrics_port: int | None = None,
    token: str = "",
    members: Membership | None = None,
    max_concurrent_runs: int = 1,
    sinks: Sequence[Sink] = (),
    on_ready: Callable[[str], None] = lambda address: None,
    on_finished: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C: take runs, do them on the agents that connect.

    A server started on the state folder of one that was stopped or killed resumes its runs. What it writes is
    readable by its own user only.

    Args:
        host, port: address to listen on; port 0 takes a free one.
        state: folder of the queue and of all runs.
        metrics_port: port of Prometheus's `/metrics`; None disables it.
        token: shared secret every caller must show, on a server without members; where empty, one is made in the state
            folder, and programs of the same user on this machine find it.
        members: enrolment of callers, who must then be members, over TLS; None for a server without members.
        max_concurrent_runs: maximum number of concurrent runs.
        sinks: take every event of every run.
        on_ready: called with the address once the server listens.
        on_finished: called with a run's folder when the run has ended.

    Raises:
        UsageError: other users can read the state folder, another server works on it, or a port is taken.
    """
    from fedloom.server.access.listening import raise_descriptor_limit

    files.restrict_new_files()
    raise_descriptor_limit()
    files.require_private_folder(state, "the server's state folder")
    metrics = None if metrics_port is None else _metrics()
    heard = (*sinks, *(() if metrics is None else (metrics,)))
    stop = threading.Event()
    own = members is None  # shared memory is for agents the server trusts as itself
    with Server(heard, shared_memory=own, by_labels=True) as server, contextlib.ExitStack() as stack:

        def run_one(store: DiskRunStore, emit: Callable[[Event], None], stop_run: threading.Event) -> RunSummary:
            experiment, folder = store.experiment(), store.folder
            journal = None
            if folder is not None and experiment.checkpoint.answers:
                journal = AnswerJournal(folder / ANSWERS, store.run_id, experiment.to_dict())
            owner = runs.owner(store.run_id)
            fleet = FleetAccess(
                coordinator=server.coordinator,
                place=lambda: RuntimeInfo(
                    runtime="fleet", workers=server.coordinator.online, where=f"agents of {host}:{port}"
                ),
                clock=server.clock,
                submitter=(owner.name, owner.role),
                code_names=True,
            )
            if own:
                save_code_here(experiment)  # agents of this user on this machine find it
            with store.claimed():
                outcome = run_session(experiment, store, fleet, (*heard, _Relay(emit)), stop=stop_run, journal=journal)
            if folder is not None:
                on_finished(folder)
            return outcome.summary

        with contextlib.closing(
            RunQueue(state, run_one, max_concurrent_runs=max_concurrent_runs, clock=server.clock)
        ) as runs:
            security = (
                stack.enter_context(open_security(state, host, members, server.clock)) if members is not None else None
            )
            enroll_port = members.enroll_port if members is not None else 0
            made = local_token.own_token(state) if own and not token else ""
            token = token or made
            bound = server.listen(host, port, token=token, runs=runs, security=security, enroll_port=enroll_port)
            if security is not None:
                enroll_administrator(security, state / "admin", host, bound)
                _log.info(
                    "devices join at %s, the address in join tokens (change it with --address); create one with: "
                    "fedloom token create --name NAME --identity %s",
                    security.join_address(server.enroll_port),
                    state / "admin",
                )
            if made:
                _tell_of_token(local_token.publish(bound, made), state)
            exposed = None if metrics is None else _expose(metrics, host, metrics_port or 0)
            runs.start()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stop.set())
            on_ready(with_port(host, bound))
            stop.wait()
            _log.info("shutting down: the running run stops after its current step and stays queued")
            if exposed is not None:
                exposed.shutdown()
        server.coordinator.close(come_back=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """Settings of enrolment."""

    enroll_port: int
    """Port of the Enroll service; 0 takes a free one."""
    address: DeviceAddress = field(default_factory=DeviceAddress)
    """How devices reach the server, for join tokens; by default `host` or the machine's name, and the ports here."""
    certificate_days: float = MEMBER_DAYS
    """How long members' certificates are valid."""
    allowed: tuple[str, ...] = ()
    """Code and paths that users' runs may use besides installed plug-ins."""


@contextlib.contextmanager
def open_security(state: Path, host: str, members: Membership, clock: Clock = SYSTEM_CLOCK) -> Iterator[Security]:
    """Open the registry and the authority of a state folder."""
    from fedloom.server.access.audit import Audit
    from fedloom.server.access.enroll_service import Security

    authority = Authority.open(state / "authority")
    reached = platform.node() if host in _ANYWHERE else host
    with contextlib.closing(Registry(state / "fedloom.sqlite", clock.time)) as registry:
        yield Security(
            registry=registry,
            authority=authority,
            address=replace(members.address, host=members.address.host or reached),
            lifetime_s=members.certificate_days * 86400,
            allowed=members.allowed,
            audit=Audit(state, clock.time),
        )


def enroll_administrator(security: Security, folder: Path, host: str, port: int) -> None:
    """Write the administrator's identity to the state folder: a fresh key and certificate at every start."""
    key = make_key()
    certificate = security.authority.sign_key(key.public_key(), ADMINISTRATOR, "admin", _ADMINISTRATOR_S)
    security.registry.enroll(ADMINISTRATOR, "admin", certificate)
    Identity(
        folder=folder,
        name=ADMINISTRATOR,
        role="admin",
        address=with_port("127.0.0.1" if host in _ANYWHERE else host, port),
        key=key_pem(key),
        certificate=pem(certificate),
        authority=security.authority.certificate_pem,
    ).save()


def _tell_of_token(published: Path | None, state: Path) -> None:
    file = state / local_token.FILE
    if published is None:
        _log.info("the token for callers is in %s; pass it to them with --token-file", file)
        return
    _log.info(
        "the token for callers is in %s; this user's commands on this machine find it, others need --token-file",
        file,
    )


def _depot() -> Depot | None:
    """Make the memory that agents on this machine share; None, with a warning, if there is no place for it."""
    try:
        return Depot.create()
    except StorageFull as exc:
        _log.warning("%s. Agents on this machine are sent everything through the network instead, which is slower", exc)
        return None


def _metrics() -> PrometheusSink:
    with needed_by("--metrics-port"):
        from fedloom.server.metrics import PrometheusSink

    return PrometheusSink()


def _expose(metrics: PrometheusSink, host: str, port: int) -> Exposed:
    from fedloom.server.metrics import expose

    try:
        return expose(metrics, host, port)
    except OSError as exc:
        raise UsageError(
            f"cannot serve metrics on {host}:{port}: {exc.strerror}. Choose another --metrics-port"
        ) from exc


class _Relay:
    """A sink that hands events to a function."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit

    def write(self, event: Event) -> None:
        self._emit(event)

    def close(self) -> None:
        """Do nothing: nothing is buffered."""
