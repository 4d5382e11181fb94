"""Connections to a server: mutual TLS for members, plain ones for simulations and servers without members."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from fedloom.client.proxy import NO_PROXY, proxy_for
from fedloom.core.errors import (
    BadMessage,
    FedloomError,
    Forbidden,
    LimitExceeded,
    NotFound,
    RunExists,
    RunFailed,
    ServerUnreachable,
    Unauthenticated,
)
from fedloom.core.identity import SERVER_NAME, Identity

MAX_MESSAGE_BYTES = 16 << 20
"""Size limit of control messages in either direction."""

_ERRORS: Mapping[grpc.StatusCode, type[FedloomError]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: RunExists,
    grpc.StatusCode.INVALID_ARGUMENT: BadMessage,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceeded,
}
"""Statuses that mean "do not retry"; every other one means the server cannot be reached."""

_ANSWERS = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DATA_LOSS,
)
"""Statuses of failed calls of users: the server has answered."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


def connect(address: str, identity: Identity | None = None, proxy: str = NO_PROXY) -> grpc.Channel:
    """Create a connection, opened when first used; with TLS and a client certificate if there is an identity.

    Args:
        address: `host:port`.
        identity: has its own proxy.
        proxy: as for `proxy_for`, of a connection without an identity.

    Raises:
        UsageError: the proxy's URL is not one.
    """
    if identity is None:
        return grpc.insecure_channel(address, options=_options(address, proxy))
    credentials = grpc.ssl_channel_credentials(identity.authority, identity.key, identity.certificate)
    return _secure(address, credentials, identity.proxy)


def connect_trusting(address: str, certificate_pem: bytes, proxy: str = NO_PROXY) -> grpc.Channel:
    """Create a TLS connection that trusts one CA certificate and presents no client certificate."""
    return _secure(address, grpc.ssl_channel_credentials(certificate_pem), proxy)


def _secure(address: str, credentials: grpc.ChannelCredentials, proxy: str) -> grpc.Channel:
    options = (*_options(address, proxy), ("grpc.ssl_target_name_override", SERVER_NAME))
    return grpc.secure_channel(address, credentials, options=options)


def _options(address: str, proxy: str) -> tuple[tuple[str, int | str], ...]:
    if url := proxy_for(address, proxy):
        return (*_OPTIONS, ("grpc.enable_http_proxy", 1), ("grpc.http_proxy", url))
    return (*_OPTIONS, ("grpc.enable_http_proxy", 0))


def translate(exc: grpc.RpcError, address: str) -> FedloomError:
    """Translate a gRPC failure to a `FedloomError`, for callers that try again unless they are rejected."""
    code, detail = _said(exc)
    kind = _ERRORS.get(code)
    if kind is not None:
        return kind(f"the server at {address} rejected the call: {detail}")
    return ServerUnreachable(
        f"no response from the server at {address} ({code.name}: {detail}). Is `fedloom serve` running there, and can "
        "this machine reach the address?"
    )


def translate_reply(exc: grpc.RpcError, address: str) -> FedloomError:
    """Translate a failure of a user's call: a server that has failed at it can be reached."""
    code, detail = _said(exc)
    if code in _ANSWERS or detail == FedloomError.public:
        return RunFailed(f"the server at {address} failed at the call: {detail}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return RunFailed(f"the server at {address} does not have this call ({detail}); does it run an older fedloom?")
    return translate(exc, address)


def _said(exc: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Return a failure's status and its details."""
    call: Any = exc  # gRPC's exception is both an RpcError and a Call, which its types do not express
    code = call.code() if hasattr(call, "code") else grpc.StatusCode.UNKNOWN
    return code, (call.details() if hasattr(call, "details") else "") or str(exc)
