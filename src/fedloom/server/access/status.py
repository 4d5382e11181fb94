"""Maps `FedloomError` to gRPC status; wraps every servicer method. Here every error leaves the server."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator

import grpc

from fedloom.core.errors import FedloomError, Forbidden, Unauthenticated
from fedloom.server.access.public_text import without_paths

_log = logging.getLogger(__name__)

MAX_TOLD = 2000
"""Bytes of an error's text on the wire. gRPC's callers take 8 KiB of a status, where a byte may be written as three."""


@contextlib.contextmanager
def answering(context: grpc.ServicerContext, known: str = "") -> Iterator[None]:
    """Turn errors into statuses, without paths of the server.

    Args:
        context: of the call.
        known: what the caller wrote: paths in it are left as they are.
    """
    try:
        yield
    except FedloomError as exc:
        reported = _short(without_paths(exc.public_message(), known))
        if exc.public is not None:
            _log.error("%s", exc)
        elif isinstance(exc, Unauthenticated | Forbidden):
            _log.warning("a call from %s was rejected: %s", context.peer(), reported)
        context.abort(grpc.StatusCode[exc.status], reported)
    except grpc.RpcError:
        raise
    except sqlite3.ProgrammingError as exc:
        if "closed database" not in str(exc):
            _log.exception("a call failed")
            context.abort(grpc.StatusCode.INTERNAL, str(FedloomError.public))
        context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
    except Exception as exc:
        if not context.is_active() or type(exc) is Exception:
            raise  # the caller disconnected, or this is gRPC's own exception of `abort`
        _log.exception("a call failed")
        context.abort(grpc.StatusCode.INTERNAL, str(FedloomError.public))


def _short(text: str) -> str:
    """Truncate a text to fit into a status: errors quote callers' input of any length."""
    data = text.encode(errors="backslashreplace")
    return data.decode() if len(data) <= MAX_TOLD else f"{data[:MAX_TOLD].decode(errors='ignore')}…"
