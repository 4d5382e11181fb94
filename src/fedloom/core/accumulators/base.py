"""The interface of an accumulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, Self, runtime_checkable

from fedloom.core.records import Array, Record, Update

Allocate = Callable[[Record], Mapping[str, Mapping[str, Array]]]
"""Allocates writable arrays shaped like a record's, so that an accumulator can be written straight to shared memory."""


@runtime_checkable
class Accumulator(Protocol):
    """An aggregation in progress. `count` is the number of updates added."""

    count: int

    def add(self, update: Update, weight: float, client: int) -> None:
        """Add one client's update with `weight` >= 0. The update's arrays are not retained.

        Raises:
            BadUpdate: the update is not finite, or unlike those before. The accumulator is unusable then: start afresh
                without this client.
        """

    def merge(self, other: Self) -> None:
        """Add another accumulator of the same kind, whose clients come after this one's.

        Raises:
            BadUpdate: the two are incompatible. This one is unchanged: the run continues without the other's clients
                if its quorum allows that.
        """

    def record(self) -> Record:
        """Return the accumulator as a record (no copies; valid until the next `add` or `merge`)."""

    @classmethod
    def from_record(cls, record: Record) -> Self:
        """Return the accumulator of a record. Writable arrays are reused, others copied on change."""
