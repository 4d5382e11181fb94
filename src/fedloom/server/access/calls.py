"""Limits calls: how many of a member are open at once, and how long one may stay silent.

Every call holds a thread until it ends. A caller may open calls and never send a request, so the caller is
checked and counted before anything is read, and a call that stays silent is cancelled.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from fedloom.core.errors import LimitExceeded, ServerUnreachable

T = TypeVar("T")

MAX_OPEN = 16
"""Limit of open calls of one member to one method, unless `OPEN` has another."""
OPEN = {
    "Fleet/Work": 4,
    "Fleet/Upload": 4,
    "Fleet/Download": 8,
    "Results/Files": 2,
    "Results/Fetch": 4,
    "Results/Logs": 4,
}
SESSIONS, SESSION_S = 30, 1.0
"""Streams, or registrations, a node may begin in a burst, and seconds per further one: each costs a thread, a log
line, and a pass over all work."""
RENEWALS, RENEWAL_S = 20, 10.0
"""Certificates a member may request in a burst, and seconds per further one."""
REQUEST_S = 10.0
"""Seconds a call may take to send its request."""
CHUNK_S = 30.0
"""Seconds allowed between two chunks of an upload, or until the caller reads one of a download."""
_CHECK_INTERVAL_S = 0.25
FLEET_THREADS, CONTROL_THREADS, ADMIN_THREADS, ENROLL_THREADS = 4096, 1024, 32, 4
"""Maximum threads for calls of agents (one per transfer, none per connection), users, administrators, and joining
machines (four times as many of those may wait). Separate pools: no group can exhaust another's."""


class Call(Protocol):
    """A call in progress: the part of gRPC's context that is used here."""

    def cancel(self) -> object:
        """Cancel the call."""

    def add_callback(self, callback: Callable[[], None], /) -> bool:
        """Register a function that runs when the call ends; returns False if it has already ended."""


class OpenCalls:
    """Counts the open calls of each member. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], dict[int, Call]] = defaultdict(dict)
        self._numbers = itertools.count()
        self._sessions = {
            call: Pace(SESSIONS, SESSION_S, f"calls of {call} by") for call in ("Fleet/Register", "Fleet/Work")
        }

    def enter(self, member: str, call: str, context: Call) -> None:
        """Count a call until it ends. Above the limit a node's oldest call is cancelled: its connection may be broken.

        Args:
            member: the caller.
            call: its method, such as `Fleet/Work`.
            context: the call's context.

        Raises:
            LimitExceeded: a user has reached the limit of open calls.
            ServerUnreachable: a node has begun too many sessions; it may retry.
        """
        if call in self._sessions:
            try:
                self._sessions[call].enter(member)
            except LimitExceeded as exc:
                raise ServerUnreachable(str(exc)) from exc
        limit, key, number = OPEN.get(call, MAX_OPEN), (member, call), next(self._numbers)
        with self._lock:
            calls = self._open[key]
            surplus = list(calls.items())[: max(0, len(calls) - limit + 1)]
            if surplus and not call.startswith("Fleet/"):
                raise LimitExceeded(f"{member!r} has {limit} calls of {call} open; end one of them first")
            for old, _ in surplus:
                del calls[old]
            calls[number] = context
        for _, old_context in surplus:
            old_context.cancel()
        if not context.add_callback(lambda: self._leave(key, number)):
            self._leave(key, number)

    def count(self, member: str, call: str) -> int:
        """Return the number of a member's open calls to a method."""
        with self._lock:
            return len(self._open.get((member, call), ()))

    def _leave(self, key: tuple[str, str], number: int) -> None:
        with self._lock:
            calls = self._open.get(key, {})
            calls.pop(number, None)
            if not calls:
                self._open.pop(key, None)


class Pace:
    """Limits the rate of a caller's requests: a burst, then one per interval. Thread-safe.

    Args:
        burst: requests allowed at once.
        every_s: seconds per further request.
        what: start of the error message, before the caller's name.
    """

    def __init__(self, burst: int, every_s: float, what: str, now: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._every_s, self._what, self._now = burst, every_s, what, now
        self._lock = threading.Lock()
        self._used: dict[str, tuple[float, float]] = {}

    def enter(self, who: str) -> None:
        """Count a request.

        Raises:
            LimitExceeded: the rate is exceeded; the message gives the seconds to wait.
        """
        with self._lock:
            now = self._now()
            used, at = self._used.get(who, (0.0, now))
            used = max(0.0, used - (now - at) / self._every_s) + 1.0
            if used > self._burst:
                wait_s = (used - self._burst) * self._every_s
                raise LimitExceeded(
                    f"{self._what} {who!r}: limit of {self._burst} in a burst exceeded; retry in {wait_s:.0f} s"
                )
            self._used[who] = used, now


@dataclass
class _Wait:
    context: Call
    until: float
    over: bool = False


class Silence:
    """Cancels calls that stay silent for too long. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits: dict[int, _Wait] = {}
        self._numbers = itertools.count()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._cancel_overdue, name="fedloom-silence", daemon=True)

    def start(self) -> None:
        """Start the thread that checks for silent calls."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()

    @contextlib.contextmanager
    def at_most(self, seconds: float, context: Call) -> Iterator[None]:
        """Cancel a call if the block takes longer than `seconds`.

        Raises:
            LimitExceeded: the block took longer.
        """
        number, wait = next(self._numbers), _Wait(context, time.monotonic() + seconds)
        with self._lock:
            self._waits[number] = wait
        try:
            yield
        except Exception as exc:
            if wait.over:
                raise LimitExceeded(f"the caller was silent for {seconds:g} s, which is the limit") from exc
            raise
        finally:
            with self._lock:
                self._waits.pop(number, None)

    def next_of(self, items: Iterator[T], seconds: float, context: Call) -> T:
        """Return a call's next message, or cancel the call if none arrives within `seconds`."""
        with self.at_most(seconds, context):
            return next(items)

    def paced(self, items: Iterator[T], seconds: float, context: Call) -> Iterator[T]:
        """Yield a call's messages, or cancel the call if the gap between two exceeds `seconds`."""
        with contextlib.suppress(StopIteration):
            while True:
                yield self.next_of(items, seconds, context)

    def taken(self, items: Iterator[T], seconds: float, context: Call) -> Iterator[T]:
        """Yield messages, or cancel the call if the caller takes longer than `seconds` to read one."""
        for item in items:
            with self.at_most(seconds, context):
                yield item

    def _cancel_overdue(self) -> None:
        while not self._stopped.wait(_CHECK_INTERVAL_S):
            now = time.monotonic()
            with self._lock:
                overdue = [wait for wait in self._waits.values() if now > wait.until and not wait.over]
                for wait in overdue:
                    wait.over = True
            for wait in overdue:
                wait.context.cancel()


@dataclass(frozen=True, kw_only=True, slots=True)
class Threads:
    """Thread pools of the services."""

    fleet: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(FLEET_THREADS, "grpc"))
    control: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(CONTROL_THREADS, "grpc-control"))
    admin: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(ADMIN_THREADS, "grpc-admin"))
    enroll: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(ENROLL_THREADS, "grpc-enroll"))

    def of(self, call: str) -> ThreadPoolExecutor:
        """Return the pool for a call, such as `Admin/Revoke`."""
        service = call.partition("/")[0]
        return {"Fleet": self.fleet, "Control": self.control, "Results": self.control}.get(service, self.admin)

    def shutdown(self) -> None:
        """Shut down the pools; threads finish their current calls."""
        for pool in (self.fleet, self.control, self.admin, self.enroll):
            pool.shutdown(wait=False)
