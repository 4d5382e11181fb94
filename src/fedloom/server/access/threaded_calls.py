"""Runs calls whose methods block: each in a thread, which takes and gives its messages on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import grpc

from fedloom.server.access.call_context import CallContext, CallEnded, Inner

Method: TypeAlias = Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]
"""The work of a call: from the messages that come to those that go."""
Serve: TypeAlias = Callable[[object, Inner], Awaitable[None]]
"""What gRPC calls for a call."""


def threaded(method: Method, pool: ThreadPoolExecutor) -> Serve:
    """Return a coroutine function that serves calls by a method that may block.

    Args:
        method: raises `CallEnded` to end the call with a status.
        pool: its thread; the call waits until one is free.
    """

    async def serve(_: object, inner: Inner) -> None:
        loop = asyncio.get_running_loop()
        context = CallContext(inner, loop)
        try:
            await ended(loop.run_in_executor(pool, _work, method, inner, context), context)
        except CallEnded as exc:
            await inner.abort(exc.code, exc.details)
        except RuntimeError as exc:
            if "shutdown" not in str(exc):
                raise
            await inner.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        finally:
            context.end()

    return serve


async def ended(work: asyncio.Future[None], context: CallContext) -> None:
    """Wait for a call's work, or until the server cancels the call.

    Raises:
        CallEnded: how it ended, unless the work is done.
    """
    work.add_done_callback(lambda work: work.cancelled() or work.exception())  # of a call that has ended before it
    await asyncio.wait({work, context.over}, return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
        raise CallEnded(grpc.StatusCode.CANCELLED, "the server has ended the call")
    await work


def _work(method: Method, inner: Inner, context: CallContext) -> None:
    """Do a call's work in a thread."""
    for answer in method(_requests(inner, context), context):
        context.run(_write(inner, answer))


def _requests(inner: Inner, context: CallContext) -> Iterator[bytes]:
    """Yield a call's messages as they come."""
    while isinstance(data := context.run(_read(inner)), bytes):
        yield data


async def _read(inner: Inner) -> object:
    return await inner.read()


async def _write(inner: Inner, data: bytes) -> None:
    await inner.write(data)
