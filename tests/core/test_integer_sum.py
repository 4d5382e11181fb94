"""Exact sums of integers: masks that cancel vanish whatever the grouping; floats and odd arrays are refused."""

from __future__ import annotations

import numpy as np
import pytest

from fedloom.core.accumulators import IntegerSum
from fedloom.core.errors import BadUpdate
from fedloom.core.records import Array, Update
from fedloom.core.seeds import generator


def update(values: Array) -> Update:
    return Update(num_examples=1, groups={"masked": {"v": values}})


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64, np.int64])
@pytest.mark.parametrize("cuts", [(5,), (1, 4), (2, 3, 5)])
def test_masks_that_cancel_vanish_whatever_the_grouping(dtype: type[np.integer], cuts: tuple[int, ...]) -> None:
    rng, clients, size = generator(1, "masks"), 5, 7
    info = np.iinfo(dtype)
    secrets = [rng.integers(0, 1000, size).astype(dtype) for _ in range(clients)]
    sent = [array.copy() for array in secrets]
    with np.errstate(over="ignore"):
        for one in range(clients):
            for other in range(one + 1, clients):
                mask = rng.integers(info.min, info.max, size, dtype=dtype, endpoint=True)
                sent[one] += mask
                sent[other] -= mask
    total, start = IntegerSum(), 0
    for end in (*cuts, clients):
        part = IntegerSum()
        for client in range(start, end):
            part.add(update(sent[client]), 3.0, client)  # the weight of an update is none of its business
        total.merge(IntegerSum.from_record(part.record()))
        start = end
    assert total.count == clients
    np.testing.assert_array_equal(total.value()["masked"]["v"], np.sum(secrets, axis=0).astype(dtype))
    assert total.value()["masked"]["v"].dtype == dtype


def test_what_is_not_an_integer_names_the_client_and_the_array() -> None:
    with pytest.raises(BadUpdate, match=r"client 4: array 'v' of group 'masked' has dtype float32.*integer"):
        IntegerSum().add(update(np.ones(2, np.float32)), 1.0, 4)


@pytest.mark.parametrize("odd", [np.ones(3, np.uint32), np.ones(2, np.int32)])
def test_arrays_that_differ_are_refused_from_clients_and_from_partial_sums(odd: Array) -> None:
    first, other = IntegerSum(), IntegerSum()
    first.add(update(np.ones(2, np.uint32)), 1.0, 0)
    other.add(update(odd), 1.0, 1)
    with pytest.raises(BadUpdate, match=r"client 1: arrays .*masked/v"):
        first.add(update(odd), 1.0, 1)
    with pytest.raises(BadUpdate, match="masked/v"):
        first.merge(other)
