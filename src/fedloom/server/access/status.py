"""Maps `FedloomError` to gRPC status; wraps every servicer method."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import grpc

from fedloom.core.errors import FedloomError, Forbidden, Unauthenticated

_log = logging.getLogger(__name__)

MAX_TOLD = 2000
"""Bytes of an error's text on the wire. gRPC's callers take 8 KiB of a status, where a byte may be written as three."""


@contextlib.contextmanager
def answering(context: grpc.ServicerContext) -> Iterator[None]:
    """Turn errors into statuses."""
    try:
        yield
    except FedloomError as exc:
        reported = _short(exc.public_message())
        if exc.public is not None:
            _log.error("%s", exc)
        elif isinstance(exc, Unauthenticated | Forbidden):
            _log.warning("a call from %s was rejected: %s", context.peer(), reported)
        context.abort(grpc.StatusCode[exc.status], reported)
    except grpc.RpcError:
        raise
    except Exception as exc:
        if not context.is_active() or type(exc) is Exception:
            raise  # the caller disconnected, or this is gRPC's own exception of `abort`
        _log.exception("a call failed")
        context.abort(grpc.StatusCode.INTERNAL, str(FedloomError.public))


def _short(text: str) -> str:
    """Truncate a text to fit into a status: errors quote callers' input of any length."""
    data = text.encode(errors="backslashreplace")
    return data.decode() if len(data) <= MAX_TOLD else f"{data[:MAX_TOLD].decode(errors='ignore')}…"
