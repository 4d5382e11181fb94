"""The interface of an accumulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, Self, runtime_checkable

from fedloom.core.records import Array, Record, Update

Allocate = Callable[[Record], Mapping[str, Mapping[str, Array]]]
"""Writable arrays shaped like a record's: how an accumulator is put straight into shared memory."""


@runtime_checkable
class Accumulator(Protocol):
    """A fold in progress. `count` says how many updates it holds."""

    count: int

    def add(self, update: Update, weight: float, client: int) -> None:
        """Fold one client's update, `weight` >= 0. The update's arrays are not kept.

        Raises:
            BadUpdate: the update is not finite, or unlike those before it. The accumulator is spoilt then: start afresh
                without this client.
        """

    def merge(self, other: Self) -> None:
        """Fold another accumulator of the same kind, whose clients come after this one's.

        Raises:
            BadUpdate: the two do not fit together. This one is as before: the run goes on without the other's clients
                where its quorum allows that.
        """

    def record(self) -> Record:
        """The accumulator as a record (no copies; valid until the next `add` or `merge`)."""

    @classmethod
    def from_record(cls, record: Record) -> Self:
        """The inverse of `record`. The arrays are taken over where they are writable, else copied on first change."""
