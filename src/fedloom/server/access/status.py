"""Errors of ours as statuses of gRPC: what every servicer's method is wrapped in."""

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
        told = _short(exc.public_message())
        if exc.public is not None:
            _log.error("%s", exc)
        elif isinstance(exc, Unauthenticated | Forbidden):
            _log.warning("a call from %s was refused: %s", context.peer(), told)
        context.abort(grpc.StatusCode[exc.status], told)
    except grpc.RpcError:
        raise
    except Exception as exc:
        if not context.is_active() or type(exc) is Exception:
            raise  # the caller is gone, or this is gRPC's own way out of `abort`
        _log.exception("a call failed")
        context.abort(grpc.StatusCode.INTERNAL, str(FedloomError.public))


def _short(text: str) -> str:
    """A text that fits into a status: errors quote what callers sent, and callers may send anything."""
    data = text.encode(errors="backslashreplace")
    return data.decode() if len(data) <= MAX_TOLD else f"{data[:MAX_TOLD].decode(errors='ignore')}…"
