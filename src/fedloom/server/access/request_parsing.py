"""Calls on their way to the services: the caller is checked, counted, and given a limited time before anything is read.

Requests are parsed here, not by gRPC: gRPC for Python keeps the state of every call whose bytes its own reader cannot
parse, and holds a thread for every call whose request never comes. On the wire a call with one request is a stream of
one message, and as such it is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import grpc

from fedloom.core.errors import BadMessage
from fedloom.server.access.calls import REQUEST_S, Silence
from fedloom.server.access.status import answering

Handler: TypeAlias = "grpc.RpcMethodHandler[object, object]"
"""gRPC's handler of one method."""
Write: TypeAlias = Callable[..., bytes] | None
"""Makes an answer's bytes; None if they are that already."""
Enter: TypeAlias = Callable[[grpc.ServicerContext, str], None]
"""Checks and counts a caller; raises what refuses it."""


class Reading(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Puts itself before every method.

    Args:
        enter: checks and counts the caller of a call such as `Fleet/Work`.
        silence: cuts off callers that do not say what they want.
        threads: the pool for a call; None for the server's own.
        request_s: seconds a call may take to say what it wants.
    """

    def __init__(
        self,
        enter: Enter,
        silence: Silence,
        threads: Callable[[str], ThreadPoolExecutor | None] = lambda call: None,
        *,
        request_s: float = REQUEST_S,
    ) -> None:
        self._enter, self._silence, self._threads, self._request_s = enter, silence, threads, request_s

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        call = method.rpartition(".")[2]
        return self._wrapped(handler, call, method)

    def _wrapped(self, handler: Handler, call: str, method: str) -> Handler:
        parse, write = handler.request_deserializer, handler.response_serializer

        def read(data: bytes) -> object:
            if parse is None:
                return data
            try:
                return parse(data)
            except Exception as exc:
                raise BadMessage(f"{len(data)} bytes received that are not a message of {method}") from exc

        def first(requests: Iterator[bytes], context: grpc.ServicerContext) -> object:
            self._enter(context, call)
            try:
                return read(self._silence.next_of(requests, self._request_s, context))
            except StopIteration:
                raise BadMessage(f"{method}: expected a message, the call ended without one") from None

        def entered(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[object]:
            self._enter(context, call)
            return map(read, requests)

        if (one := handler.unary_unary) is not None:
            return self._in_pool(_one_answer(one, first, write), call)
        if (several := handler.unary_stream) is not None:
            return self._in_pool(_answers(several, first, write), call)
        if (taking := handler.stream_unary) is not None:
            return self._in_pool(_one_answer(taking, entered, write), call)
        both = handler.stream_stream
        assert both is not None, "there is no other shape of a call"
        return self._in_pool(_answers(both, entered, write), call)

    def _in_pool(self, handler: Handler, call: str) -> Handler:
        """Make gRPC take a thread of the call's pool, which it reads from the function."""
        pool, behaviour = self._threads(call), handler.stream_unary or handler.stream_stream
        if pool is not None:
            behaviour.experimental_thread_pool = pool  # type: ignore[union-attr]  # a function's attribute
        return handler


def _one_answer(method: Callable[..., object], given: Callable[..., object], write: Write) -> Handler:
    def behaviour(requests: Iterator[bytes], context: grpc.ServicerContext) -> object:
        with answering(context):
            request = given(requests, context)
        return method(request, context)

    return grpc.stream_unary_rpc_method_handler(behaviour, None, write)


def _answers(method: Callable[..., Iterator[object]], given: Callable[..., object], write: Write) -> Handler:
    def behaviour(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[object]:
        with answering(context):
            request = given(requests, context)
        yield from method(request, context)

    return grpc.stream_stream_rpc_method_handler(behaviour, None, write)
