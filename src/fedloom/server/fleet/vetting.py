"""What a result from another machine must be before it counts: the sum of the clients it tells of, finite, in shape.

An agent refuses such updates itself, and names the client. These checks are for agents that do not. One that shares the
server's memory could change a sum after any check; such agents are the server's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from fedloom.core.accumulators import BUILTIN, Accumulator, RunningMean, UpdateList, is_finite, sum_dtype
from fedloom.core.errors import BadUpdate
from fedloom.core.records import MODEL, Record

Vet = Callable[[Record, Collection[int]], None]
"""Raises `BadUpdate` unless a record is the accumulator of these clients."""


def vet_sum(kind: type[Accumulator], model: Record | None, total: Record, clients: Collection[int]) -> None:
    """Check what an agent sent as the accumulator of some clients.

    Args:
        kind: the accumulator's class.
        model: the global model of the exchange; None where it has none.
        total: what came.
        clients: those the result says have answered.

    Raises:
        BadUpdate: it is no such accumulator, is about another number of clients, is not finite, or a mean's arrays
            have not the model's shapes.
    """
    try:
        partial = kind.from_record(total)
        told = sorted(client for client, _ in partial.updates) if isinstance(partial, UpdateList) else None
        count = int(partial.count)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as exc:
        raise BadUpdate(f"what came is not a {kind.__name__}: {type(exc).__name__}: {exc}") from exc
    if count != len(clients) or (told is not None and told != sorted(clients)):
        raise BadUpdate(f"a {kind.__name__} of {count} updates came, the result tells of clients {sorted(clients)}")
    if kind not in BUILTIN.values():
        return  # what its numbers mean is the strategy's
    for group, name, array in total.items():
        if not is_finite(array):
            raise BadUpdate(f"array {name!r} of group {group!r} is not finite (NaN or infinity)")
    if isinstance(partial, RunningMean):
        _vet_mean(partial.weight, model, total)


def _vet_mean(weight: float, model: Record | None, total: Record) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise BadUpdate(f"a mean's weight must be a number of at least 0, got {weight}")
    for name, array in total.groups.get(MODEL, {}).items():
        want = model.groups.get(MODEL, {}).get(name) if model is not None else None
        if want is not None and (array.shape, array.dtype) != (want.shape, sum_dtype(want.dtype)):
            raise BadUpdate(
                f"array {name!r} of group {MODEL!r} came as {array.dtype} {array.shape}; the sum of models like the "
                f"global one is {sum_dtype(want.dtype)} {want.shape}"
            )
