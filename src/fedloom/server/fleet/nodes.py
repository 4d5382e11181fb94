"""Agents as the coordinator knows them: identity, assigned groups, history."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedloom.core.clock import SYSTEM_CLOCK, Clock
from fedloom.core.messages import INSTANCE, Ack, Goodbye, GroupKey, GroupResult, Hello, RunOver, RunSpec, ToAgent
from fedloom.core.records import JsonObject

_log = logging.getLogger(__name__)

MAX_RIVALS = 16
"""Limit of the pairs of hosts with agents of one name that are warned of."""
MAX_UNREAD = 10_000
"""Limit of an agent's unread messages; beyond it they are dropped, and the agent is soon disconnected."""


def host_of(address: str) -> str:
    """Return the host of a caller's address as gRPC gives it, such as `ipv4:10.0.0.1:50`."""
    return address.rpartition(":")[0] or address


class Mailbox:
    """Messages on their way to one session of one agent.

    Each message that wakes the stream costs system calls on both sides, so messages that can wait (`put_deferred`) are
    sent with the next one that cannot.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[ToAgent | None] = queue.SimpleQueue()
        self._deferred: queue.SimpleQueue[ToAgent] = queue.SimpleQueue()
        self._on_mail: Callable[[], None] = _ignore
        self._aged = False
        """Whether there were deferred messages at the last call of `flush_aged`."""
        self.closed = False
        """Whether everything was taken, and there will be no more."""

    @property
    def overflown(self) -> bool:
        """Return whether too many messages were left unread."""
        return self._queue.qsize() + self._deferred.qsize() >= MAX_UNREAD

    def put(self, message: ToAgent) -> None:
        """Add a message, after deferred ones."""
        self._put_deferred_ones()
        if not self.overflown:
            self._queue.put(message)
            self._on_mail()

    def put_deferred(self, message: ToAgent) -> None:
        """Add a message that leaves with the next one, or with `flush`."""
        if not self.overflown:
            self._deferred.put(message)

    def flush(self) -> None:
        """Deliver deferred messages."""
        if self._put_deferred_ones():
            self._on_mail()

    def flush_aged(self) -> None:
        """Deliver deferred messages that were there at the last call; newer ones may still leave with another one."""
        if self._aged:
            self.flush()
        self._aged = not self._deferred.empty()

    def _put_deferred_ones(self) -> bool:
        """Return whether there were any."""
        found = False
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.put(self._deferred.get_nowait())
                found = True
        return found

    def get(self, timeout_s: float | None = None) -> ToAgent | None:
        """Return the next message; None once the mailbox is closed. Raises `queue.Empty` after `timeout_s`."""
        self.flush()
        return self._queue.get(timeout=timeout_s) if timeout_s != 0 else self._queue.get_nowait()

    def take(self, limit: int) -> list[ToAgent]:
        """Return up to `limit` messages that are there, without deferred ones; `closed` says if there will be more."""
        messages: list[ToAgent] = []
        with contextlib.suppress(queue.Empty):
            while len(messages) < limit and not self.closed:
                if (message := self._queue.get_nowait()) is None:
                    self.closed = True
                else:
                    messages.append(message)
        return messages

    def listen(self, on_mail: Callable[[], None]) -> None:
        """Register a function that is called, in any thread, whenever a message is available."""
        self._on_mail = on_mail

    def close(self) -> None:
        """End the stream that reads this, after its remaining messages."""
        self.flush()
        self._queue.put(None)
        self._on_mail()


def _ignore() -> None:
    """Do nothing: the mailbox's reader waits in `get`."""


@dataclass
class Node:
    """One agent as the coordinator knows it."""

    hello: Hello
    locality: str
    """`process`, `host` or `remote`."""
    mailbox: Mailbox | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    member: str = ""
    """Id of the member it is; on a server without members, its name."""
    announced_runs: dict[str, RunSpec] = field(default_factory=dict)
    assigned: dict[GroupKey, float] = field(default_factory=dict)
    """Its groups, with the time each was pushed (monotonic seconds)."""
    cancelled: dict[GroupKey, float] = field(default_factory=dict)
    """Work it may still be doing though it was cancelled, with the time of that (monotonic seconds)."""
    clock: Clock = SYSTEM_CLOCK
    seen: float = field(init=False)
    """Time of its last message (monotonic seconds)."""
    gone_since: float | None = None
    address: str = ""
    """Where it calls from, for messages."""
    rivals: set[str] = field(default_factory=set)
    """Pairs of hosts whose agents of its name were warned of."""
    fresh: bool = True
    """No heartbeat of this session yet."""
    newcomer: bool = True
    """No heartbeat yet since this server started."""
    runs: set[str] = field(default_factory=set)
    """Runs it has been assigned groups of."""
    bytes_down: int = 0
    bytes_up: int = 0
    groups_done: dict[str, int] = field(default_factory=dict)
    """Groups finished, by run."""
    busy_s: dict[str, float] = field(default_factory=dict)
    """Seconds of work, by run."""

    def __post_init__(self) -> None:
        self.seen = self.clock.monotonic()

    @property
    def online(self) -> bool:
        return self.mailbox is not None

    def is_present(self, now: float, grace_s: float) -> bool:
        """Return whether it is connected and known to be so by a heartbeat, or has just lost its connection.

        Args:
            now: the clock's time (monotonic seconds).
            grace_s: seconds it may take to reconnect.
        """
        if self.online:
            return not (self.fresh and self.newcomer)
        return self.gone_since is not None and now - self.gone_since <= grace_s

    def inherit(self, old: Node) -> None:
        """Take over the groups and counts of its last session; it has yet to attach."""
        self.assigned, self.gone_since = old.assigned, self.clock.monotonic()
        self.bytes_down, self.bytes_up = old.bytes_down, old.bytes_up
        self.groups_done, self.busy_s = old.groups_done, old.busy_s
        self.newcomer, self.runs, self.cancelled = old.newcomer, old.runs, old.cancelled
        self.rivals = old.rivals

    def precedes(self, other: Hello) -> bool:
        """Return whether it is connected, and another agent than the one that introduces itself with its name."""
        mine, others = self.hello.facts.get(INSTANCE), other.facts.get(INSTANCE)
        return self.online and bool(mine and others) and mine != others

    def refuse(self, other: Hello, address: str, silence_s: float) -> str:
        """Return why another agent of its name has to wait, warning of it once.

        Args:
            other: introduces the other one.
            address: where that one calls from.
            silence_s: seconds of silence after which this one counts as disconnected.
        """
        name = self.hello.node
        trouble = (
            f"node {name!r} is connected from {self.address or 'this machine'}, and another agent of its name calls "
            f"from {address or 'this machine'}: it waits until the first one is disconnected, or silent for "
            f"{silence_s:g} s. If these are two machines with copies of one identity, join one of them with another "
            "token"
        )
        rival = " ".join(sorted((host_of(self.address), host_of(address))))  # ports and processes change
        if rival not in self.rivals and len(self.rivals) < MAX_RIVALS:
            self.rivals.add(rival)
            _log.warning("%s", trouble, extra={"node": name})
        return trouble

    def attach(self) -> Mailbox:
        """Open a stream, which replaces an earlier one."""
        if self.mailbox is not None:
            self.mailbox.close()
        self.mailbox, self.seen, self.gone_since = Mailbox(), self.clock.monotonic(), None
        return self.mailbox

    def detach(self) -> None:
        """End its stream."""
        if self.mailbox is not None:
            self.mailbox.close()
        self.mailbox, self.gone_since = None, self.clock.monotonic()

    def leave(self) -> None:
        """End its stream for good: it is not expected to reconnect."""
        self.detach()
        self.cancelled.clear()
        self.gone_since = -math.inf

    def send_away(self, reason: str, *, come_back: bool = False) -> None:
        """Send a farewell if its stream is open, which ends the stream."""
        if self.mailbox is not None:
            self.mailbox.put(Goodbye(reason=reason, come_back=come_back))
            self.mailbox.close()

    def announce(self, run: RunSpec) -> None:
        """Send it a run's specification, once, and again when it has changed."""
        if self.mailbox is not None and self.announced_runs.get(run.run_id) is not run:
            self.announced_runs[run.run_id] = run
            self.mailbox.put(run)

    def forget(self, run_id: str, *, resumable: bool) -> None:
        """Forget a run that is over."""
        self.runs.discard(run_id)
        if run_id in self.announced_runs:
            del self.announced_runs[run_id]
            if self.mailbox is not None:
                self.mailbox.put(RunOver(run_id=run_id, resumable=resumable))

    def acknowledge(self, key: GroupKey, status: str, message: str = "") -> None:
        """Acknowledge a result. The agent does not wait for a positive one, so that is sent with the next push."""
        if self.mailbox is not None:
            put = self.mailbox.put_deferred if status == "accepted" else self.mailbox.put
            put(Ack(key=key, status=status, message=message))

    def count(self, result: GroupResult) -> None:
        """Account for a group it has finished, with the bytes that no message or stream counts."""
        run_id = result.key.run_id
        self.groups_done[run_id] = self.groups_done.get(run_id, 0) + 1
        self.busy_s[run_id] = self.busy_s.get(run_id, 0.0) + result.busy_s
        self.bytes_up += sum(ref.size for ref in result.payloads if ref.in_memory)

    def row(self, now: float) -> JsonObject:
        """Return the node as the Control service lists it, without its facts, at a time (monotonic seconds)."""
        return {
            "node": self.hello.node,
            "state": ("busy" if self.assigned else "online") if self.online else "lost",
            "labels": dict(self.labels),
            "wire_bytes_down": self.bytes_down,
            "wire_bytes_up": self.bytes_up,
            "groups_done": sum(self.groups_done.values()),
            "last_seen_s": now - self.seen,
        }
