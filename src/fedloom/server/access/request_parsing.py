"""Requests read by us: gRPC for Python keeps the state of every call whose bytes its own reader cannot parse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc

from fedloom.core.errors import BadMessage
from fedloom.server.access.status import answering


class Reading(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Parses what comes, and refuses what cannot be parsed, in place of gRPC: anybody could fill the memory else."""

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        handler: Any = continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        parse, write = handler.request_deserializer, handler.response_serializer

        def read(data: bytes) -> Any:
            try:
                return parse(data)
            except Exception as exc:
                raise BadMessage(
                    f"{len(data)} bytes came that are no message of {handler_call_details.method}"
                ) from exc

        def unary(request: bytes, context: grpc.ServicerContext) -> Any:
            with answering(context):
                message = read(request)
            return handler.unary_unary(message, context)

        def streaming(request: bytes, context: grpc.ServicerContext) -> Iterator[Any]:
            with answering(context):
                message = read(request)
            yield from handler.unary_stream(message, context)

        def both(requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            return handler.stream_stream(map(read, requests), context)

        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(unary, None, write)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(streaming, None, write)
        assert handler.stream_stream is not None, "no call with a parsed request has this shape"
        return grpc.stream_stream_rpc_method_handler(both, None, write)
