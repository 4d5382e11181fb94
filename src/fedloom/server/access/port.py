"""A gRPC port of the server, on the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import grpc

from fedloom.core.addresses import with_port
from fedloom.core.errors import UsageError
from fedloom.server.access.event_loop import on_loop, serving_loop
from fedloom.server.access.request_parsing import Services

_log = logging.getLogger(__name__)

_GRACE_S, _STOP_S = 1.0, 5.0
"""Seconds that calls may take when the port stops, and after which it is no longer waited for."""


class Port:
    """A port that listens; its calls wait until `serve`.

    Args:
        host, number: where to listen; port 0 takes a free one.
        secret: its certificate; None does not encrypt.
        options: of gRPC.
        most_calls: calls in progress at most; None for no limit.

    Raises:
        UsageError: the port is taken, or the address is not this machine's.
    """

    def __init__(
        self,
        host: str,
        number: int,
        secret: grpc.ServerCredentials | None,
        options: Sequence[tuple[str, int]],
        *,
        most_calls: int | None = None,
    ) -> None:
        self._server, self.number = on_loop(_bound(with_port(host, number), secret, options, most_calls))

    def serve(self, services: Services) -> None:
        """Start serving calls."""
        self._server.add_generic_rpc_handlers(tuple(services.handlers()))
        on_loop(self._server.start())

    def stop(self) -> None:
        """Stop listening, and end calls in progress."""
        stopping = asyncio.run_coroutine_threadsafe(self._server.stop(_GRACE_S), serving_loop())
        try:
            stopping.result(_STOP_S)
        except TimeoutError:
            _log.warning("calls are still running %g s after the server stopped listening", _STOP_S)


async def _bound(
    address: str,
    secret: grpc.ServerCredentials | None,
    options: Sequence[tuple[str, int]],
    most_calls: int | None,
) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=most_calls)
    try:
        if secret is None:
            return server, server.add_insecure_port(address)
        return server, server.add_secure_port(address, secret)
    except RuntimeError as exc:
        raise UsageError(
            f"cannot listen on {address}: the port is in use, or the address is not this machine's. "
            "Choose another --port (0 takes a free one)"
        ) from exc
