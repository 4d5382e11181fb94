"""Requests read by us: gRPC for Python keeps the state of every call whose bytes its own reader cannot parse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import grpc

from fedloom.core.errors import BadMessage
from fedloom.server.access.status import answering

Handler: TypeAlias = "grpc.RpcMethodHandler[object, object]"
"""How gRPC does one method."""


class Reading(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Parses what comes, and refuses what cannot be parsed, in place of gRPC: anybody could fill the memory else."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        parse, write = handler.request_deserializer, handler.response_serializer

        def read(data: bytes) -> object:
            try:
                return parse(data)
            except Exception as exc:
                raise BadMessage(
                    f"{len(data)} bytes came that are no message of {handler_call_details.method}"
                ) from exc

        def first(request: bytes, context: grpc.ServicerContext) -> object:
            with answering(context):
                return read(request)

        if (one := handler.unary_unary) is not None:
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: one(first(request, context), context), None, write
            )
        if (several := handler.unary_stream) is not None:

            def streaming(request: bytes, context: grpc.ServicerContext) -> Iterator[object]:
                yield from several(first(request, context), context)

            return grpc.unary_stream_rpc_method_handler(streaming, None, write)
        both = handler.stream_stream
        assert both is not None, "no call with a parsed request has this shape"
        return grpc.stream_stream_rpc_method_handler(
            lambda requests, context: both(map(read, requests), context), None, write
        )
