"""Calls on the event loop whose work is in threads: what ends them releases their threads, and is answered once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, cast

import grpc
import pytest

from fedloom.server.access.call_context import CallContext, CallEnded, Inner
from fedloom.server.access.event_loop import on_loop, serving_loop
from fedloom.server.access.threaded_calls import Method, threaded
from fedloom.server.access.work_streams import Wakeups
from fedloom.testing.fleet import wait_until


class Aborted(Exception):
    """What gRPC raises in a call that is aborted."""


class Caller:
    """gRPC's side of a call: two messages come, and then nothing until the caller goes."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.status: tuple[grpc.StatusCode, str] | None = None
        self._coming = [b"first", b"second"]

    async def read(self) -> bytes:
        if not self._coming:
            await asyncio.Event().wait()
        return self._coming.pop(0)

    async def write(self, data: bytes) -> None:
        self.sent.append(data)

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        self.status = code, details
        raise Aborted


def call(method: Method, caller: Caller, pool: ThreadPoolExecutor) -> Any:
    """Begin a call; returns its future, as gRPC's task is."""
    serve = threaded(method, pool)
    return asyncio.run_coroutine_threadsafe(cast(Any, serve(None, cast(Inner, caller))), serving_loop())


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """A thread, which has to be free again at the end."""
    with ThreadPoolExecutor(1) as executor:
        yield executor
        assert executor.submit(lambda: "free").result(10) == "free"


def test_messages_come_and_go_in_order_and_an_error_is_the_status(pool: ThreadPoolExecutor) -> None:
    def method(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield next(requests).upper()
        yield next(requests).upper()
        context.abort(grpc.StatusCode.NOT_FOUND, "no third")

    caller = Caller()
    with pytest.raises(Aborted):
        call(method, caller, pool).result(10)
    assert caller.sent == [b"FIRST", b"SECOND"]
    assert caller.status == (grpc.StatusCode.NOT_FOUND, "no third")


@pytest.mark.parametrize("who", ["server", "caller"])
def test_a_call_that_is_ended_releases_its_thread_and_calls_back_once(pool: ThreadPoolExecutor, who: str) -> None:
    contexts: list[grpc.ServicerContext] = []
    waits, called = threading.Event(), list[str]()

    def method(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        contexts.append(context)
        assert context.is_active() and context.add_callback(lambda: called.append("over"))
        waits.set()
        yield from requests

    caller = Caller()
    future = call(method, caller, pool)
    assert waits.wait(60)
    if who == "server":
        contexts[0].cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leave it without types
        with pytest.raises(Aborted):
            future.result(10)
        assert caller.status == (grpc.StatusCode.CANCELLED, "the server has ended the call")
    else:
        future.cancel()
    assert pool.submit(lambda: "free").result(10) == "free"
    wait_until(lambda: called == ["over"], what="the callback")
    assert not contexts[0].is_active()
    assert not contexts[0].add_callback(lambda: called.append("again")), "it is over"


def test_a_step_of_a_call_that_is_over_is_not_begun() -> None:
    async def context() -> CallContext:
        made = CallContext(cast(Inner, Caller()), asyncio.get_running_loop())
        made.end()
        return made

    async def never() -> None:
        raise AssertionError("it was begun")

    with pytest.raises(CallEnded):
        on_loop(context()).run(never())


def test_wakeups_of_many_tasks_are_one_wakeup_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.new_event_loop()
    scheduled = list[Any]()
    monkeypatch.setattr(loop, "call_soon_threadsafe", scheduled.append)
    wakeups, events = Wakeups(loop), [asyncio.Event() for _ in range(3)]
    for event in events:
        wakeups.wake(event)
    assert len(scheduled) == 1 and not any(event.is_set() for event in events)
    scheduled.pop()()
    assert all(event.is_set() for event in events)
    wakeups.wake(events[0])
    assert len(scheduled) == 1, "the next one schedules again"
    loop.close()
