"""Records that never change: named by their frame's digest, so that nobody needs the same one twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from fedloom.core import frames
from fedloom.core.records import Groups, Record


@dataclass(frozen=True, slots=True)
class Pinned(Record):
    """A record that stays as it is for as long as anybody names it, such as the frozen base of a fine-tuned model.

    As an exchange's input it is encoded and hashed once, fetched once by each node, and counted once for each client.
    As a field of a state it is written to a run's folder once, however many checkpoints name it.
    """

    sha256: str = ""
    """Digest of the record's frame."""

    @classmethod
    def of(cls, record: Record) -> Self:
        """Pin a record; its arrays are shared with it and must not change any more."""
        return cls(record.groups, record.info, frames.digest(record))

    def move(self, places: Groups) -> None:
        """Live in other memory from now on, where the same values already are, so that they are held only once.

        Args:
            places: arrays equal to the record's own, whatever their order; nobody may write to them.
        """
        moved = {group: {name: places[group][name] for name in arrays} for group, arrays in self.groups.items()}
        object.__setattr__(self, "groups", moved)
