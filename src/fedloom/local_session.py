"""One session of a run on agents that are started for it, here or on a Ray cluster."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence

from fedloom.core.config import Experiment
from fedloom.core.local_token import new_token
from fedloom.core.protocols import Sink
from fedloom.server.app import Server
from fedloom.server.rounds.run_services import FleetAccess
from fedloom.server.rounds.session import Outcome, run_session
from fedloom.server.store.run_store import RunStore
from fedloom.simulation.client_states import forget_states
from fedloom.simulation.runtimes import make_runtime

PATIENCE_S = 60.0
"""Seconds without any agent after which a simulated run fails."""


def run_on_own_agents(experiment: Experiment, store: RunStore, sinks: Sequence[Sink]) -> Outcome:
    """Start a server and agents, do the remaining rounds, and end both."""
    stop, runtime = threading.Event(), make_runtime(experiment)
    with _stopping_on_signals(stop), contextlib.ExitStack() as first, contextlib.ExitStack() as last:
        first.callback(runtime.stop)  # where the server cannot be started
        host, token = runtime.host(), new_token()  # before the server's threads: it may fork this process
        server = last.enter_context(Server(sinks))
        last.callback(runtime.stop)
        address = f"{host}:{server.listen(host, token=token)}" if host else ""
        runtime.start(server.coordinator, address, token)
        fleet = FleetAccess(
            coordinator=server.coordinator,
            place=runtime.place,
            pump=None if host else runtime.pump,
            patience_s=PATIENCE_S,
            clock=server.clock,
        )
        outcome = run_session(experiment, store, fleet, sinks, stop=stop)
        server.coordinator.close("the run is over")
    if outcome.error is None or store.folder is None:  # else the run may be resumed
        forget_states(store.run_id)
    return outcome


@contextlib.contextmanager
def _stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """Stop the run in order at the first Ctrl-C or SIGTERM, abort it at the second."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
