"""Checks and counts callers, then parses their requests within a time limit, before any service method runs.

Requests are parsed here, not by gRPC, so that an error states what was received. On the wire a call with one request is
a stream of one message, and is read as one here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, cast

import grpc

from fedloom.core.errors import BadMessage, LimitExceeded
from fedloom.server.access.calls import REQUEST_S, Silence
from fedloom.server.access.status import answering
from fedloom.server.access.threaded_calls import Method, Serve, threaded

MAX_REQUEST_BYTES = 4 << 20
"""Size limit of requests of people; those of agents may be as large as any message."""
Handler: TypeAlias = "grpc.RpcMethodHandler[object, object]"
"""gRPC's handler of one method."""
Enter: TypeAlias = Callable[[grpc.ServicerContext, str], None]
"""Checks and counts a caller; raises if the caller is rejected."""


class Services:
    """Collects the services of a port like gRPC's own server, and runs the checks before every method.

    Args:
        enter: checks and counts the caller of a call such as `Fleet/Work`.
        silence: cancels calls that send no request.
        threads: returns the pool for a call.
        request_s: seconds a call may take to send its request.
    """

    def __init__(
        self,
        enter: Enter,
        silence: Silence,
        threads: Callable[[str], ThreadPoolExecutor],
        *,
        request_s: float = REQUEST_S,
    ) -> None:
        self._enter, self._silence, self._threads, self._request_s = enter, silence, threads, request_s
        self._services: dict[str, dict[str, Serve]] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Do nothing: the same methods are added by `add_registered_method_handlers`."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Add the methods of a service, such as `fedloom.proto.v1.Fleet`."""
        for name, handler in handlers.items():
            call = f"{service.rpartition('.')[2]}/{name}"
            self.add(service, name, threaded(self._method(handler, call, f"/{service}/{name}"), self._threads(call)))

    def add(self, service: str, name: str, serve: Serve) -> None:
        """Add a method that runs on the event loop."""
        self._services.setdefault(service, {})[name] = serve

    def handlers(self) -> list[grpc.GenericRpcHandler[object, object]]:
        """Return the services for gRPC: every call as two streams of bytes."""
        return [
            grpc.method_handlers_generic_handler(
                service,
                {name: grpc.stream_stream_rpc_method_handler(cast(Method, serve)) for name, serve in methods.items()},
            )
            for service, methods in self._services.items()
        ]

    def _method(self, handler: Handler, call: str, path: str) -> Method:
        parse, write = handler.request_deserializer, handler.response_serializer or _unchanged

        longest = MAX_REQUEST_BYTES if call.partition("/")[0] != "Fleet" else None

        def read(data: bytes) -> object:
            if longest is not None and len(data) > longest:
                raise LimitExceeded(f"{method}: expected a message of at most {longest} bytes, got {len(data)}")
            if parse is None:
                return data
            try:
                return parse(data)
            except Exception as exc:
                raise BadMessage(f"{path}: expected its request message, got {len(data)} bytes that are none") from exc

        def first(requests: Iterator[bytes], context: grpc.ServicerContext) -> object:
            try:
                return read(self._silence.next_of(requests, self._request_s, context))
            except StopIteration:
                raise BadMessage(f"{path}: expected a request message, but the call ended without one") from None

        def method(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            with answering(context):
                self._enter(context, call)
                given = map(read, requests) if handler.request_streaming else first(requests, context)
            yield from map(write, _responses(handler, given, context))

        return method


def _as_streams(serve: Serve) -> Handler:
    return grpc.stream_stream_rpc_method_handler(cast("Callable[..., Iterator[object]]", serve))


def _responses(handler: Handler, given: object, context: grpc.ServicerContext) -> Iterator[object]:
    """Call a service's method, of any arity, and return its responses."""
    if handler.stream_unary is not None:
        return iter((handler.stream_unary(cast("Iterator[object]", given), context),))
    if handler.unary_stream is not None:
        return handler.unary_stream(given, context)
    if handler.unary_unary is not None:
        return iter((handler.unary_unary(given, context),))
    raise TypeError("a method that streams in both directions is served on the event loop")


def _unchanged(response: object) -> bytes:
    return cast(bytes, response)
