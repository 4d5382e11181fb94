"""Records that never change: named by their frame's digest, so that each is transferred once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from fedloom.core import frames
from fedloom.core.records import Groups, Record


@dataclass(frozen=True, slots=True)
class Pinned(Record):
    """A record that does not change while it is referred to, such as the frozen base of a fine-tuned model.

    As an exchange's input it is encoded and hashed once, fetched once by each node, and counted once for each client.
    As a field of a state it is written to a run's folder once, however many checkpoints refer to it.
    """

    sha256: str = ""
    """Digest of the record's frame."""

    @classmethod
    def of(cls, record: Record) -> Self:
        """Pin a record; its arrays are shared with it and must not change any more."""
        return cls(record.groups, record.info, frames.digest(record))

    def move(self, places: Groups) -> None:
        """Move to other memory that already contains the same values, so that they are stored only once.

        Args:
            places: arrays equal to the record's own, in any order; nothing may write to them.
        """
        moved = {group: {name: places[group][name] for name in arrays} for group, arrays in self.groups.items()}
        object.__setattr__(self, "groups", moved)
