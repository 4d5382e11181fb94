"""Requirements on every accumulator."""

from __future__ import annotations

import numpy as np

from fedloom.core.accumulators import Accumulator, Allocate
from fedloom.core.plugins import accumulator_class, make_accumulator
from fedloom.core.records import MODEL, Array, Groups, Mean, Record, Update
from fedloom.core.seeds import generator
from fedloom.testing.records import record_digest, through_frame


class AccumulatorConformance:
    """Tests of one accumulator; subclass it and set `name`."""

    name: str
    """A built-in one, or a strategy (folder, module or file) that has its own accumulator."""

    def update(self, client: int) -> Update:
        """Make one client's update, the same at every call; by default a model of two arrays, (4, 3) and (4,)."""
        rng = generator(1, "update", client)
        arrays: dict[str, Array] = {
            "w": rng.normal(size=(4, 3)).astype(np.float32),
            "b": rng.normal(size=4).astype(np.float16),
        }
        return Update(num_examples=client + 1, groups={MODEL: arrays}, metrics={"loss": Mean(client, 1.0)})

    def test_it_starts_empty_and_counts(self) -> None:
        """Check that an accumulator has all methods, is empty at first, and counts its updates."""
        empty = self.build()
        assert isinstance(empty, Accumulator), f"{type(empty).__name__} lacks a method of core.accumulators.Accumulator"
        assert empty.count == 0, f"an empty accumulator has count {empty.count}"
        assert self._filled(range(3)).count == 3, "three updates were added"

    def test_an_allocator_changes_nothing(self) -> None:
        """Check that memory from outside gives the same sums."""

        def allocate(record: Record) -> Groups:
            return {
                group: {name: np.empty(array.shape, array.dtype) for name, array in arrays.items()}
                for group, arrays in record.groups.items()
            }

        placed = self._filled(range(3), allocate)
        assert _content(placed) == _content(self._filled(range(3))), "other bits in memory from an allocator"

    def test_a_frame_carries_it(self) -> None:
        """Check that `from_record` is the inverse of `record`, over a wire, however many updates are in it."""
        for clients in (range(0), range(1), range(4)):
            full = self._filled(clients)
            assert _content(self._carried(full)) == _content(full), f"{len(clients)} updates do not survive a frame"

    def test_merging_in_order_gives_the_same_bits(self) -> None:
        """Check that partial accumulators merge to the same bits, whether or not they were sent over a wire."""

        def merged(carry: bool) -> tuple[str, int]:
            total = self.build()
            for clients in (range(2), range(2, 3), range(3, 7)):
                part = self._filled(clients)
                total.merge(self._carried(part) if carry else part)
            return _content(total)

        assert merged(carry=True) == merged(carry=False), "a partial sum that crossed a wire merges to other bits"
        assert merged(carry=True)[1] == 7, "seven updates were merged"

    def test_an_empty_one_merges_without_effect(self) -> None:
        """Check that an empty accumulator merges into any other, and any other into it."""
        whole = _content(self._filled(range(3)))
        left, right = self._filled(range(3)), self.build()
        left.merge(self.build())
        right.merge(self._filled(range(3)))
        assert _content(left) == whole, "merging an empty one changed the sum"
        assert _content(right) == whole, "merging into an empty one gives another sum"

    def test_it_continues_after_a_frame_and_writes_into_nothing_borrowed(self) -> None:
        """Check that adding and merging after `from_record` give the same bits and do not change the record."""
        first, later = self._filled(range(2)), self._filled(range(2, 4))
        before = _content(first), _content(later)
        resumed = self._carried(first)
        resumed.add(self.update(2), 3.0, 2)
        assert _content(resumed) == _content(self._filled(range(3))), "other bits when adding after a frame"
        total = self.read(first.record())
        total.merge(later)
        total.add(self.update(9), 10.0, 9)
        assert (_content(first), _content(later)) == before, "it changed the record passed to it"

    def test_updates_are_neither_changed_nor_kept(self) -> None:
        """Check that an update's arrays are read once: the workload reuses its buffers."""
        accumulator, again = self.build(), self.build()
        for client in range(2):
            update = self.update(client)
            arrays = [array for named in update.groups.values() for array in named.values()]
            for array in arrays:
                array.setflags(write=False)  # a write raises now
            accumulator.add(update, 1.0, client)
            for array in arrays:
                array.setflags(write=True)
                array[...] = 99
            again.add(self.update(client), 1.0, client)
        assert _content(accumulator) == _content(again), "it retained an update's arrays instead of copying them"

    def build(self, allocate: Allocate | None = None) -> Accumulator:
        """Make an empty accumulator, in memory `allocate` gives: the one called `name` by default."""
        return make_accumulator(self.name, allocate)

    def read(self, record: Record) -> Accumulator:
        """Make an accumulator of what its `record` was."""
        return accumulator_class(self.name).from_record(record)

    def _filled(self, clients: range, allocate: Allocate | None = None) -> Accumulator:
        accumulator = self.build(allocate)
        for client in clients:
            accumulator.add(self.update(client), client + 1.0, client)
        return accumulator

    def _carried(self, accumulator: Accumulator) -> Accumulator:
        return self.read(through_frame(accumulator.record()))


def _content(accumulator: Accumulator) -> tuple[str, int]:
    return record_digest(accumulator.record()), accumulator.count
