"""Adapts a call's context to methods that run in other threads than the event loop's."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import NoReturn, TypeAlias, TypeVar, cast

import grpc

T = TypeVar("T")

Inner: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
"""gRPC's own context of a call."""


class CallEnded(Exception):
    """A call is over: it was aborted with a status, it was cancelled, or the caller has gone.

    Args:
        code: its status.
        details: for the caller.
    """

    def __init__(self, code: grpc.StatusCode = grpc.StatusCode.CANCELLED, details: str = "the call has ended") -> None:
        super().__init__(details)
        self.code, self.details = code, details


class CallContext(grpc.ServicerContext):
    """A call in progress. Thread-safe but for `end` and `over`, which are the loop's.

    Args:
        inner: gRPC's own context.
        loop: the running loop.
    """

    def __init__(self, inner: Inner, loop: asyncio.AbstractEventLoop) -> None:
        self._inner, self._loop = inner, loop
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] | None = []
        """Called at its end; None after it."""
        self._steps: set[Future[object]] = set()
        """Reads and writes in progress that threads wait for."""
        self.over: asyncio.Future[None] = loop.create_future()
        """Done when the server has cancelled the call."""

    def end(self) -> None:
        """Note that the call is over: threads that wait for its messages stop waiting."""
        with self._lock:
            callbacks, self._callbacks = self._callbacks, None
            steps = list(self._steps)
        for step in steps:
            step.cancel()
        for callback in callbacks or ():
            callback()

    def run(self, step: Coroutine[object, object, T]) -> T:
        """Return the result of a step on the loop, such as a read.

        Raises:
            CallEnded: the call ended meanwhile.
        """
        with self._lock:
            if self._callbacks is None:
                step.close()
                raise CallEnded
            future = asyncio.run_coroutine_threadsafe(step, self._loop)
            self._steps.add(cast("Future[object]", future))
        try:
            return future.result()
        except BaseException as exc:  # cancelled, or what gRPC raises once the caller has gone
            raise CallEnded from exc
        finally:
            with self._lock:
                self._steps.discard(cast("Future[object]", future))

    # What services use

    def is_active(self) -> bool:
        return self._callbacks is not None and not self.over.done()

    def time_remaining(self) -> float:
        return self._inner.time_remaining()

    def cancel(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        with self._lock:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
            return True

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise CallEnded(code, details)

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        raise CallEnded(status.code, status.details)

    def invocation_metadata(self) -> grpc.Metadata:
        return cast("grpc.Metadata", self._inner.invocation_metadata())

    def peer(self) -> str:
        return self._inner.peer()

    def auth_context(self) -> Mapping[str, bytes]:
        return cast(Mapping[str, bytes], self._inner.auth_context())

    # What gRPC's interface has besides

    def peer_identities(self) -> None:
        return None

    def peer_identity_key(self) -> None:
        return None

    def send_initial_metadata(self, initial_metadata: grpc.Metadata) -> None:
        self.run(self._inner.send_initial_metadata(initial_metadata))

    def set_trailing_metadata(self, trailing_metadata: grpc.Metadata) -> None:
        self._inner.set_trailing_metadata(trailing_metadata)

    def set_code(self, code: grpc.StatusCode) -> None:
        self._inner.set_code(code)

    def set_details(self, details: str) -> None:
        self._inner.set_details(details)
