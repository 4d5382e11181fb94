"""Errors of ours as statuses of gRPC: what every servicer's method is wrapped in."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import grpc

from fedloom.core.errors import FedloomError, Forbidden, Unauthenticated

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def answering(context: grpc.ServicerContext) -> Iterator[None]:
    """Turn errors into statuses."""
    try:
        yield
    except FedloomError as exc:
        if exc.public is not None:
            _log.error("%s", exc)
        elif isinstance(exc, Unauthenticated | Forbidden):
            _log.warning("a call from %s was refused: %s", context.peer(), exc)
        context.abort(grpc.StatusCode[exc.status], exc.public_message())
    except grpc.RpcError:
        raise
    except Exception as exc:
        if not context.is_active() or type(exc) is Exception:
            raise  # the caller is gone, or this is gRPC's own way out of `abort`
        _log.exception("a call failed")
        context.abort(grpc.StatusCode.INTERNAL, str(FedloomError.public))
