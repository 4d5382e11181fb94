"""What every accumulator must keep to: the built-in ones and those of strategy folders."""

from typing import Any

import numpy as np
import pytest

from fedloom.core import frames, registry
from fedloom.core.accumulators import BUILTIN, Accumulator, IntegerSum
from fedloom.core.records import Arrays, Mean, Record, Update, arrays_sha256
from fedloom.core.seeds import generator

KINDS: dict[str, Any] = dict(BUILTIN) | {
    name: registry.part("strategies", name, "accumulator").Accumulator
    for name in (*registry.names("strategies"), "_low_rank")
    if registry.has_part("strategies", name, "accumulator")
}


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def update(client: int, kind: Any) -> Update:
    rng = generator(1, "update", client)
    arrays: Arrays = {"w": rng.normal(size=(4, 3)).astype(np.float32), "b": rng.normal(size=4).astype(np.float16)}
    if kind is IntegerSum:
        arrays = {name: (array.astype(np.float64) * 1e8).astype(np.int64) for name, array in arrays.items()}
    return Update(num_examples=client + 1, groups={"model": arrays}, metrics={"loss": Mean(client, 1.0)})


def fold(kind: Any, clients: range) -> Any:
    accumulator = kind()
    for client in clients:
        accumulator.add(update(client, kind), client + 1.0, client)
    return accumulator


def content(accumulator: Accumulator) -> tuple[str, str, int]:
    record = accumulator.record()
    arrays: Arrays = {f"{group}/{name}": array for group, name, array in record.items()}
    return arrays_sha256(arrays), repr(record.info), accumulator.count


def frozen(record: Record) -> Record:
    return frames.decode(bytes(frames.encode(record)))


def test_it_is_an_accumulator_that_starts_empty(kind: Any) -> None:
    accumulator = kind()
    assert isinstance(accumulator, Accumulator)
    assert accumulator.count == 0
    assert fold(kind, range(3)).count == 3


def test_it_can_be_made_with_an_allocator_and_then_folds_the_same(kind: Any) -> None:
    def allocate(record: Record) -> Any:
        return {g: {n: np.empty(a.shape, a.dtype) for n, a in arrays.items()} for g, arrays in record.groups.items()}

    placed = kind(allocate)
    for client in range(3):
        placed.add(update(client, kind), client + 1.0, client)
    assert content(placed) == content(fold(kind, range(3)))


@pytest.mark.parametrize("clients", [range(0), range(1), range(4)])
def test_a_frame_carries_it(kind: Any, clients: range) -> None:
    accumulator = fold(kind, clients)
    assert content(kind.from_record(frozen(accumulator.record()))) == content(accumulator)


def test_merging_groups_in_order_gives_the_same_bits_each_time_wherever_the_groups_came_from(kind: Any) -> None:
    def merged(carry: bool) -> tuple[str, str, int]:
        total = kind()
        for clients in (range(2), range(2, 3), range(3, 7)):
            part = fold(kind, clients)
            total.merge(kind.from_record(frozen(part.record())) if carry else part)
        return content(total)

    assert merged(carry=True) == merged(carry=False)
    assert merged(carry=True)[2] == 7


def test_an_empty_one_merges_into_anything_and_anything_into_it(kind: Any) -> None:
    whole = content(fold(kind, range(3)))
    left = fold(kind, range(3))
    left.merge(kind())
    right = kind()
    right.merge(fold(kind, range(3)))
    assert content(left) == content(right) == whole


def test_folding_goes_on_after_a_frame_and_writes_into_nothing_borrowed(kind: Any) -> None:
    first, later = fold(kind, range(2)), fold(kind, range(2, 4))
    before = content(first), content(later)
    resumed = kind.from_record(frozen(first.record()))
    resumed.add(update(2, kind), 3.0, 2)
    assert content(resumed) == content(fold(kind, range(3)))
    total = kind.from_record(first.record())
    total.merge(later)
    total.add(update(9, kind), 10.0, 9)
    assert (content(first), content(later)) == before


def test_updates_are_read_only_to_it(kind: Any) -> None:
    accumulator = kind()
    for client in range(2):
        each = update(client, kind)
        for array in each.groups["model"].values():
            array.setflags(write=False)
        accumulator.add(each, 1.0, client)
        for array in each.groups["model"].values():
            array.setflags(write=True)
            array[...] = 99.0  # the workload's buffer is used again
    again = kind()
    for client in range(2):
        again.add(update(client, kind), 1.0, client)
    assert content(accumulator) == content(again)
