"""The streams of agents, on the event loop: a connected agent takes two tasks there, and no thread.

What an agent sends is processed at once, except for what may take long: large results, and messages that end something.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import grpc

from fedloom.core.errors import BadMessage, FedloomError, NotFound
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.proto.v1.batches import BatchWriter
from fedloom.server.access.call_context import CallContext, CallEnded, Inner
from fedloom.server.access.gate import Caller, Gate
from fedloom.server.access.status import answering
from fedloom.server.access.threaded_calls import ended
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.nodes import Mailbox

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)

MAX_BATCH = 16
"""Messages sent to an agent together; their inlined payloads stay well under MAX_MESSAGE_BYTES."""
QUICK_BYTES = 64 << 10
"""Larger messages are processed in a thread: their arrays are read and checked."""
LAST_WRITE_S = 1.0
"""Seconds that a message in progress may take when its stream ends."""
WARN_S = 60.0
"""Minimum number of seconds between two log lines about a node's messages."""
MAX_WARNED = 256
"""Limit of nodes whose last warning is remembered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """An agent's session whose stream has begun."""

    caller: Caller
    node: str
    session: str
    mailbox: Mailbox


Enter = Callable[[grpc.ServicerContext], Session]
"""Checks and counts the caller of a stream, and attaches its session; raises what refuses it."""


class WorkStreams:
    """Serves the streams of agents.

    Args:
        coordinator: of the agents.
        gate: authorises callers.
        enter: begins a session.
        pool: threads for what may take long.
        loop: the one that serves.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        gate: Gate,
        enter: Enter,
        pool: ThreadPoolExecutor,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._coordinator, self._gate, self._enter, self._pool, self._loop = coordinator, gate, enter, pool, loop
        self._wakeups, self._writer = Wakeups(loop), BatchWriter()
        self._warned: dict[str, float] = {}
        """Time of each node's last rejected stream (monotonic seconds)."""

    async def serve(self, _: object, inner: Inner) -> None:
        """Serve one stream until it ends."""
        context = CallContext(inner, self._loop)
        try:
            await self._serve(inner, context)
        except CallEnded as exc:
            await inner.abort(exc.code, exc.details)
        finally:
            context.end()

    async def _serve(self, inner: Inner, context: CallContext) -> None:
        session, reason = await self._begun(context), "its connection broke"
        reading = asyncio.ensure_future(self._read(session, inner, context))
        writing = asyncio.ensure_future(self._write(session, inner))
        try:
            await asyncio.wait({reading, writing, context.over}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                await reading
            await ended(writing, context)
            reason = "its connection ended"
        except CallEnded as exc:
            reason = exc.details
            raise
        finally:
            session.mailbox.close()
            reading.cancel()
            # The status of a call is lost if it is sent while a message is: the caller would wait for its deadline.
            await asyncio.wait({writing, context.over}, timeout=LAST_WRITE_S, return_when=asyncio.FIRST_COMPLETED)
            writing.cancel()
            self._end(session, reason)

    async def _begun(self, context: CallContext) -> Session:
        """Begin a session in a thread; one whose caller has gone meanwhile ends at once."""
        begun = self._in_thread(self._begin, context)
        try:
            return await asyncio.shield(begun)
        except asyncio.CancelledError:
            begun.add_done_callback(self._end_unused)
            raise

    def _end_unused(self, begun: asyncio.Future[Session]) -> None:
        if not begun.cancelled() and begun.exception() is None:
            self._end(begun.result(), "its connection broke")

    def _begin(self, context: CallContext) -> Session:
        with answering(context):
            return self._enter(context)

    def _end(self, session: Session, reason: str) -> None:
        try:
            self._pool.submit(self._detach, session, reason)
        except RuntimeError:  # the pool is shut down, as the server is
            self._detach(session, reason)

    def _detach(self, session: Session, reason: str) -> None:
        self._coordinator.detach(session.node, session.session, reason, session.mailbox)

    def _in_thread(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        return self._loop.run_in_executor(self._pool, functools.partial(step, *args, **kwargs))

    async def _write(self, session: Session, inner: Inner) -> None:
        """Send what is put into the mailbox, until it is closed."""
        mail = asyncio.Event()
        session.mailbox.listen(lambda: self._wakeups.wake(mail))
        while not session.mailbox.closed:
            mail.clear()
            while messages := session.mailbox.take(MAX_BATCH):
                data = self._writer.encode(messages)
                self._coordinator.count_bytes(session.node, down=len(data))
                await inner.write(data)
            if not session.mailbox.closed:
                await mail.wait()

    async def _read(self, session: Session, inner: Inner, context: CallContext) -> None:
        """Process what comes until the agent's side ends, or its session has.

        Raises:
            CallEnded: a message was refused.
        """
        while isinstance(data := await inner.read(), bytes):
            try:
                await self._process(session, data)
            except NotFound as exc:  # another session has taken this one's place
                await self._in_thread(self._detach, session, str(exc))
                return
            except FedloomError as exc:
                self._warn(session.node, exc)
                with answering(context):
                    raise
            except Exception:
                _log.exception("node %s: its stream failed", session.node, extra={"node": session.node})
                await self._in_thread(self._detach, session, "its connection broke")
                return

    async def _process(self, session: Session, data: bytes) -> None:
        self._gate.check(session.caller)
        self._coordinator.count_bytes(session.node, up=len(data))
        messages = _parsed(data, session.node)
        if len(data) <= QUICK_BYTES and all(map(_is_quick, messages)):
            self._receive(session, messages)
        else:
            await self._in_thread(self._receive, session, messages)

    def _receive(self, session: Session, messages: Sequence[pb.FromAgent]) -> None:
        """Process messages; a result that cannot be read is rejected by its key, and the stream continues."""
        node = session.node
        for message in messages:
            try:
                read = codec.read_from_agent(message, node)
            except BadMessage as exc:
                if message.WhichOneof("body") != "result":
                    raise
                self._coordinator.reject(node, session.session, codec.read_result_key(message.result), exc)
            else:
                self._coordinator.receive(node, session.session, read)

    def _warn(self, node: str, exc: FedloomError) -> None:
        """Log why a node's stream is refused, once a minute at most for each."""
        now = time.monotonic()
        if now - self._warned.get(node, -math.inf) >= WARN_S:
            if len(self._warned) >= MAX_WARNED:
                self._warned.clear()
            self._warned[node] = now
            _log.warning("node %s: %s", node, exc, extra={"node": node})


class Wakeups:
    """Wakes tasks of a loop from any thread: many at the price of one.

    Args:
        loop: of the tasks.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[asyncio.Event] = deque()
        self._scheduled = False

    def wake(self, event: asyncio.Event) -> None:
        """Have an event set soon."""
        self._waiting.append(event)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._scheduled = False  # first: what is added from now on schedules the next time
        while self._waiting:
            self._waiting.popleft().set()


def _parsed(data: bytes, node: str) -> Sequence[pb.FromAgent]:
    try:
        messages = pb.FromAgentBatch.FromString(data).messages
    except Exception as exc:
        raise BadMessage(
            f"/fedloom.proto.v1.Fleet/Work: expected its request message, got {len(data)} bytes that are none"
        ) from exc
    if not messages:
        raise BadMessage(f"node {node!r} sent an empty batch; is the agent newer than this server?")
    return messages


def _is_quick(message: pb.FromAgent) -> bool:
    """Return whether a small message takes bookkeeping only: nothing is read from elsewhere, and nothing ends."""
    kind = message.WhichOneof("body")
    if kind != "result":
        return kind in ("heartbeat", "refusal")
    result = message.result
    return not any(ref.shared or ref.sha256 for ref in (result.total, *result.states.values()))
