"""The agent: receives groups, does their jobs, sends results; survives a lost connection and a restarted server.

One thread does the clients' work. A second one sends heartbeats, which also list the agent's groups; the server
pushes undelivered groups again, the agent repeats unacknowledged results.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from fedloom.client.connection import Connection
from fedloom.client.executor import Executor
from fedloom.client.facts import facts
from fedloom.client.input_cache import InputsGone
from fedloom.client.setup import NodeSetup
from fedloom.core.errors import BadFrame, BadMessage, FedloomError, LimitExceeded, PolicyRefused, ServerUnreachable
from fedloom.core.messages import (
    Ack,
    Cancel,
    Channel,
    Goodbye,
    Group,
    GroupKey,
    GroupResult,
    Heartbeat,
    Hello,
    Inquiry,
    Refusal,
    RunOver,
    RunSpec,
    ToAgent,
)
from fedloom.core.seeds import generator

_log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.2
"""Pause before the first attempt to reconnect; it doubles from there."""
IDLE_BEATS = 5
"""Idle agents send every N-th heartbeat only, so that five hundred of them stay cheap."""
GATHER_S = 0.05
"""Results of groups that take less than this are sent several at a time, while more groups wait here."""
MAX_WAITING, MAX_WAITING_BYTES = 256, 64 << 20
"""Groups that wait here, and the bytes of payloads in their messages, at most. Further ones are dropped; heartbeats do
not list them, so the server pushes them again."""
MAX_ANNOUNCED = 16
"""Messages about whole runs that are read while a group runs, at most; further ones wait in the channel, whose size is
bounded, and everything behind them."""
LAST_RETRY_S = 10.0
"""The longest pause between attempts to reconnect."""
BREAKS = 3
"""Short connections in a row that may break after a result was sent on them before the result counts as the cause."""
_REFUSED = (BadMessage, LimitExceeded, BadFrame)
"""Errors for a rejected message, here or by the server."""


@dataclass
class _Unacknowledged:
    """A result the server has not acknowledged."""

    result: GroupResult
    sent_at: float
    breaks: int = 0
    """Short connections that broke with it."""


class Agent:
    """One worker or device.

    Args:
        channel: the way to the server.
        node: a lasting name; the server replaces an older session of the same name.
        setup: resources and permissions of its machine; by default everything.
        give_up_s: seconds without a server after which the agent ends; None retries forever.
    """

    def __init__(
        self, channel: Channel, node: str, setup: NodeSetup | None = None, *, give_up_s: float | None = None
    ) -> None:
        self._channel, self.node, self._give_up_s = channel, node, give_up_s
        self._executor = Executor(channel, node, setup)
        self._leftovers = setup.leftovers if setup is not None else None
        self._waiting: deque[Group] = deque()
        self._results: dict[GroupKey, _Unacknowledged] = {}
        self._unsent: list[GroupResult] = []
        self._connection = Connection(node)
        self._sent_at = 0.0
        self._current: GroupKey | None = None
        self._lock = threading.Lock()
        self._heartbeat_s = 2.0
        self._stopped = threading.Event()
        self._leaving = False
        self._instance = secrets.token_hex(8)
        self._values = frozenset(setup.node_values) if setup is not None else frozenset[str]()
        self.farewell = ""
        """Why the server disconnected the agent permanently, if it has."""
        self._latest: dict[str, tuple[int, int]] = {}
        """The latest (round, exchange) of each run that a group was begun of."""
        self._reading = threading.Lock()
        self._broken: FedloomError | None = None
        self._announced: deque[RunSpec | RunOver | Inquiry] = deque()
        """Messages about whole runs that arrived while a group was running."""
        self._depot_nonce = ""

    def connect(self) -> bool:
        """Register the agent and its groups; retries with growing, jittered pauses.

        Returns:
            Whether there is a connection; False if `stop` was called first.

        Raises:
            ServerUnreachable: no server responded for `give_up_s` seconds.
            FedloomError: the server refused this agent, which trying again would not change.
        """
        began, reported = time.monotonic(), False
        jitter = generator(secrets.randbits(62), "reconnect")
        pause = self._connection.pause_s(FIRST_RETRY_S, self._heartbeat_s)
        if pause > FIRST_RETRY_S and self._stopped.wait(pause):
            return False
        while True:
            hello = Hello(node=self.node, session=secrets.token_hex(8), facts=facts(self._instance, self._values))
            try:
                welcome = self._channel.open(hello)
                self._heartbeat_s, self._broken, self._latest = welcome.heartbeat_s, None, {}
                if welcome.depot_nonce != self._depot_nonce:
                    self._start_over(welcome.depot_nonce)
                self._connection.opened()
                self._channel.send(self._heartbeat())
                self._unsent.clear()
                for unacknowledged in list(self._results.values()):
                    self._deliver(unacknowledged.result)
                return True
            except ServerUnreachable as exc:
                if self._give_up_s is not None and time.monotonic() - began > self._give_up_s:
                    raise
                if not reported:
                    _log.warning("node %s: %s; retrying until it responds", self.node, exc, extra={"node": self.node})
                    reported = True
            if self._stopped.wait(pause * (0.5 + float(jitter.random()))):
                return False
            pause = min(2 * pause, LAST_RETRY_S)

    def _start_over(self, depot_nonce: str) -> None:
        """Drop groups and results that refer to the memory of another server than this one."""
        with self._lock:
            self._depot_nonce = depot_nonce
            self._waiting.clear()
            self._results.clear()

    def run(self) -> None:
        """Work until the server ends the session or `stop` is called."""
        beats = threading.Thread(target=self._beat, name="fedloom-heartbeat", daemon=True)
        try:
            if not self.connect():
                return
            beats.start()
            while not self._stopped.is_set() and not self._leaving:
                try:
                    self.step(timeout_s=self._heartbeat_s)
                except (ServerUnreachable, *_REFUSED) as exc:
                    if self._stopped.is_set() or self._leaving:
                        break
                    self._connection.lost(exc)
                    self._drop_what_broke_it(refused=isinstance(exc, _REFUSED))
                    if not self.connect():
                        break
        finally:
            self._stopped.set()
            if beats.is_alive():
                beats.join()
            self.end_helpers()
            self._channel.close()

    def end_helpers(self) -> None:
        """End the helpers, and other processes, that workloads have started."""
        self._executor.close()
        if self._leftovers is not None:
            self._leftovers.end_all()

    def _started_by(self, run_id: str) -> AbstractContextManager[None]:
        """Count the processes that appear in a block as the run's."""
        return nullcontext() if self._leftovers is None else self._leftovers.of_run(run_id)

    def stop(self) -> None:
        """Make `run` end after the current group."""
        self._stopped.set()

    def step(self, timeout_s: float) -> bool:
        """Process received messages, then do at most one group; returns False if there was nothing to do."""
        if self._broken is not None:
            raise self._broken
        with self._reading:
            while self._announced:
                self._take(self._announced.popleft())
            message = self._channel.receive(0.0 if self._ready() else timeout_s)
            idle = message is None
            while message is not None:
                self._take(message)
                if isinstance(message, RunSpec) and not self._waiting:
                    with self._started_by(message.run_id):
                        self._executor.warm(message.run_id)
                message = self._channel.receive(0.0)
        with self._lock:
            group = self._ready()
            if group is not None:
                self._waiting.remove(group)
                self._current = group.key
        if group is not None:
            self._do(group)
        return not idle or group is not None

    def _ready(self) -> Group | None:
        """Return the first waiting group of a known run; others wait for their experiment, requested by heartbeat."""
        return next((group for group in self._waiting if self._executor.knows(group.key.run_id)), None)

    def _do(self, group: Group) -> None:
        key = group.key
        before, now = self._latest.get(key.run_id), (key.round, key.exchange)
        if before is not None and now > before:
            self._channel.recycle(key.run_id)  # what was stored for its earlier exchanges has been aggregated
        if before is None or now > before:  # a late message may bring an old group, whose successors are still open
            self._latest[key.run_id] = now
        try:
            with self._started_by(key.run_id):
                result = self._executor.work(group)
        except ServerUnreachable:
            with self._lock:
                self._waiting.appendleft(group)
                self._current = None
            raise
        except InputsGone as exc:  # heartbeats no longer list it, so it is pushed again if it is still needed
            _log.info("group %s returned: %s", key, exc, extra=_about(self.node, key))
            with self._lock:
                self._current = None
            self._send_results()
            return
        except PolicyRefused as exc:
            _log.info("group %s refused: %s", key, exc, extra=_about(self.node, key))
            with self._lock:
                self._current = None
            self._send_results()
            self._channel.send(Refusal(key=key, kind=exc.kind, reason=str(exc), retry_s=exc.retry_s))
            return
        done_at = time.monotonic()
        with self._lock:
            self._results[key] = _Unacknowledged(result, done_at)
            self._current = None
            self._unsent.append(result)
            # The last waiting group is not begun before the server knows that more are wanted.
            gather = len(self._waiting) > 1 and done_at - self._sent_at < GATHER_S
        if not gather:
            self._sent_at = done_at
            self._send_results()

    def _send_results(self) -> None:
        """Send the collected results."""
        for result in self._unsent:
            self._deliver(result)
        self._unsent.clear()

    def _deliver(self, result: GroupResult) -> None:
        """Send a result; one that cannot be encoded becomes the failure of its clients, so that it is sent once."""
        try:
            self._channel.send(result)
        except _REFUSED as exc:
            self._replace(result, exc)

    def _replace(self, result: GroupResult, exc: Exception) -> None:
        """Report the clients of a result that cannot be delivered as failed, in its place."""
        key = result.key
        _log.warning("group %s: its result cannot be sent: %s", key, exc, extra=_about(self.node, key))
        failed = self._executor.undeliverable(result, exc)
        with self._lock:
            self._results[key] = _Unacknowledged(failed, time.monotonic())
        try:
            self._channel.send(failed)
        except _REFUSED as again:
            _log.error("group %s: its failure cannot be sent either: %s", key, again, extra=_about(self.node, key))
            with self._lock:
                del self._results[key]
            self._channel.send(Refusal(key=key, kind="failure", reason="its result cannot be sent", retry_s=0.0))

    def _drop_what_broke_it(self, *, refused: bool) -> None:
        """Replace results that were sent on the broken connection and are the likely cause.

        Args:
            refused: whether the server ended the connection because of a message.
        """
        limit = 1 if refused else BREAKS
        with self._lock:
            for unacknowledged in self._results.values():
                unacknowledged.breaks = unacknowledged.breaks + 1 if refused or self._connection.was_short else 0
            culprits = [
                unacknowledged.result for unacknowledged in self._results.values() if unacknowledged.breaks >= limit
            ]
        for result in culprits:
            self._results[result.key] = _Unacknowledged(
                self._executor.undeliverable(result, BadMessage("the connection broke each time it was sent")),
                time.monotonic(),
            )
            _log.warning("group %s: its result broke the connection", result.key, extra=_about(self.node, result.key))

    def _take(self, message: ToAgent) -> None:
        match message:
            case RunSpec():
                self._executor.prepare(message)
            case Group():
                with self._lock:
                    known = {group.key for group in self._waiting} | set(self._results)
                    if message.key not in known and message.key != self._current and self._has_room(message):
                        self._waiting.append(message)
                if message.key in self._results:
                    self._deliver(self._results[message.key].result)
            case Ack():
                with self._lock:
                    self._results.pop(message.key, None)
                    self._waiting = deque(group for group in self._waiting if group.key != message.key)
            case Cancel():
                name = (message.run_id, message.round, message.exchange)
                with self._lock:
                    self._waiting = deque(group for group in self._waiting if group.key[:3] != name)
                    self._results = {key: result for key, result in self._results.items() if key[:3] != name}
                self._channel.send(self._heartbeat())  # says at once whether this agent is free
            case RunOver():
                self._end_run(message)
            case Inquiry():
                self._channel.send(self._executor.judge(message))
            case Goodbye(come_back=True):
                raise ServerUnreachable(f"the server disconnected this agent: {message.reason}")
            case Goodbye():
                self._leaving, self.farewell = True, message.reason

    def _has_room(self, group: Group) -> bool:
        """Return whether one more group may wait. Under the lock."""
        waiting = sum(map(_inline_bytes, self._waiting))
        small = not self._waiting or waiting + _inline_bytes(group) <= MAX_WAITING_BYTES
        return small and len(self._waiting) < MAX_WAITING

    def _end_run(self, over: RunOver) -> None:
        """Drop what is cached for a run that is over; memory that its results share with the server is reused."""
        run_id = over.run_id
        self._executor.forget(run_id, resumable=over.resumable)
        if self._leftovers is not None:
            self._leftovers.end(run_id)
        self._latest.pop(run_id, None)
        with self._lock:
            shared = [
                key
                for key, unacknowledged in self._results.items()
                if key.run_id == run_id and any(ref.shared for ref in unacknowledged.result.payloads)
            ]
            for key in shared:
                del self._results[key]
            self._unsent = [result for result in self._unsent if result.key not in shared]
        self._channel.recycle(run_id)

    def _heartbeat(self) -> Heartbeat:
        with self._lock:
            current = () if self._current is None else (self._current,)
            waiting = tuple(group.key for group in self._waiting)
            missing = {key.run_id for key in waiting if not self._executor.knows(key.run_id)}
            return Heartbeat(groups=(*current, *waiting, *self._results), missing_runs=tuple(sorted(missing)))

    def _look(self) -> None:
        """Process messages while a long group runs, so that heartbeats report the current state."""
        if self._current is None or not self._reading.acquire(blocking=False):
            return
        try:
            while len(self._announced) < MAX_ANNOUNCED and (message := self._channel.receive(0.0)) is not None:
                if isinstance(message, RunSpec | RunOver | Inquiry):  # either may drop what the current group uses
                    self._announced.append(message)
                else:
                    self._take(message)
        except (ServerUnreachable, *_REFUSED) as exc:
            self._broken = exc  # for the working thread, which reconnects
        finally:
            self._reading.release()

    def _overdue(self) -> list[GroupResult]:
        """Return the results sent a heartbeat ago or longer and not acknowledged since."""
        now = time.monotonic()
        with self._lock:
            late = [
                unacknowledged
                for unacknowledged in self._results.values()
                if now - unacknowledged.sent_at > self._heartbeat_s
            ]
            for unacknowledged in late:
                unacknowledged.sent_at = now
        return [unacknowledged.result for unacknowledged in late]

    def _beat(self) -> None:
        """Send heartbeats, and repeat unacknowledged results."""
        quiet = 0
        while not self._stopped.wait(self._heartbeat_s):
            try:
                self._look()
                beat = self._heartbeat()
                quiet = 0 if beat.groups else quiet + 1
                if quiet % IDLE_BEATS:
                    continue
                self._channel.send(beat)
                for result in self._overdue():
                    self._deliver(result)
            except FedloomError:
                continue  # the working thread meets the same trouble and reconnects


def _about(node: str, key: GroupKey) -> dict[str, object]:
    """Return run, round and node for log lines."""
    return {"run": key.run_id, "round": key.round, "node": node}


def _inline_bytes(group: Group) -> int:
    """Return the bytes of payloads that came within a group's message."""
    return sum(len(ref.inline) for ref in (*group.inputs.values(), *group.states.values()))
