"""Running means against NumPy's, in every dtype; merging, borrowing, and updates that do not fit."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fedloom.core import frames
from fedloom.core.accumulators import RunningMean, UpdateList, scaled_add, sum_dtype
from fedloom.core.errors import BadUpdate
from fedloom.core.records import Mean, Record, Update
from fedloom.core.seeds import generator

DTYPES = [
    *(np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn),
    *(np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_),
]
WEIGHTS: tuple[float, ...] = (3, 1, 8, 2, 5)


def update(arrays: dict[str, Any], num_examples: int = 1, group: str = "model") -> Update:
    return Update(num_examples=num_examples, groups={group: arrays})


def values(dtype: Any, shape: tuple[int, ...] = (4, 3), seed: int = 5) -> list[np.ndarray[Any, Any]]:
    rng = generator(seed, "values")
    return [(rng.normal(scale=3.0, size=shape) + 4.0).astype(dtype) for _ in WEIGHTS]


def folded(arrays: Sequence[np.ndarray[Any, Any]], weights: Sequence[float], first_client: int = 0) -> RunningMean:
    mean = RunningMean()
    for client, (array, weight) in enumerate(zip(arrays, weights, strict=True), first_client):
        mean.add(update({"w": array}), weight, client)
    return mean


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 3), (), (0, 2)])
def test_the_mean_is_numpys_mean_cast_to_the_updates_dtype(dtype: Any, shape: tuple[int, ...]) -> None:
    arrays = values(dtype, shape)
    got = folded(arrays, WEIGHTS).value()["model"]["w"]
    exact = sum(w * a.astype(np.float64) for w, a in zip(WEIGHTS, arrays, strict=True)) / sum(WEIGHTS)
    assert (got.dtype, got.shape) == (np.dtype(dtype), shape)
    if np.dtype(dtype).kind in "iub":
        np.testing.assert_array_equal(got, np.rint(exact).astype(dtype))
    else:
        step = float(ml_dtypes.finfo(dtype).eps)  # one rounding of a sum kept in float32 or better
        np.testing.assert_allclose(
            got.astype(np.float64), exact, rtol=max(step, 1e-6 if dtype != np.float64 else 1e-15)
        )


def test_weights_are_weights() -> None:
    mean = folded([np.array([0.0, 10.0], np.float32), np.array([4.0, -10.0], np.float32)], (1, 3))
    np.testing.assert_array_equal(mean.value()["model"]["w"], np.array([3.0, -5.0], np.float32))
    assert (mean.count, mean.weight) == (2, 4.0)


def test_arrays_longer_than_a_block_are_folded_whole() -> None:
    long = [np.linspace(k, k + 1, 600_001, dtype=np.float32) for k in range(2)]
    got = folded(long, (1, 1)).value()["model"]["w"]
    np.testing.assert_allclose(got, (long[0] + long[1]) / 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64])
def test_merging_in_order_gives_the_same_bits_and_another_grouping_only_other_last_bits(dtype: Any) -> None:
    arrays = values(dtype, (50,))

    def grouped(*cuts: int) -> Any:
        parts = [slice(a, b) for a, b in zip((0, *cuts), (*cuts, len(arrays)), strict=True)]
        total = RunningMean()
        for part in parts:
            total.merge(folded(arrays[part], WEIGHTS[part]))
        assert (total.count, total.weight) == (len(arrays), sum(WEIGHTS))
        return total.value()["model"]["w"]

    np.testing.assert_array_equal(grouped(2), grouped(2))
    absolute = sum(w * abs(a.astype(np.float64)) for w, a in zip(WEIGHTS, arrays, strict=True)) / sum(WEIGHTS)
    reordered = len(arrays) * float(np.finfo(np.float32).eps) * absolute  # of a float32 sum of so many terms
    cast = float(np.finfo(np.float16).eps) * absolute if dtype == np.float16 else 0.0
    for cuts in ((1,), (2,), (1, 3), (1, 2, 3, 4)):
        difference = abs(grouped(*cuts).astype(np.float64) - grouped().astype(np.float64))
        assert (difference <= (reordered + cast if np.dtype(dtype).kind == "f" else 0.0)).all()


def test_grouping_does_change_bits_which_is_why_group_size_belongs_to_the_experiment() -> None:
    arrays = [np.array([big], np.float32) for big in (1e8, 1.0, -1e8, 1.0)]
    whole = folded(arrays, (1, 1, 1, 1)).value()["model"]["w"]
    halves = folded(arrays[:2], (1, 1))
    halves.merge(folded(arrays[2:], (1, 1)))
    assert whole[0] == 0.25  # ((1e8 + 1) - 1e8) + 1 = 1 in float32
    assert halves.value()["model"]["w"][0] == 0.0  # (1e8 + 1) + (-1e8 + 1) = 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_frame_carries_the_fold_unchanged(dtype: Any) -> None:
    mean = folded(values(dtype), WEIGHTS)
    again = RunningMean.from_record(frames.decode(bytes(frames.encode(mean.record()))))
    assert (again.count, again.weight) == (mean.count, mean.weight)
    mine, theirs = mean.value()["model"]["w"], again.value()["model"]["w"]
    assert (mine.dtype, mine.tobytes()) == (theirs.dtype, theirs.tobytes())


def test_neither_merge_nor_add_writes_into_a_record_or_another_fold() -> None:
    arrays = values(np.float32)
    first, second = folded(arrays[:2], WEIGHTS[:2]), folded(arrays[2:4], WEIGHTS[2:4])
    frame = bytes(frames.encode(first.record()))  # read-only: a write would raise
    untouched = {name: mean.record().groups["model"]["w"].copy() for name, mean in (("a", first), ("b", second))}

    for start in (RunningMean.from_record(frames.decode(frame)), RunningMean()):
        start.merge(first)
        start.merge(second)
        start.add(update({"w": arrays[4]}), WEIGHTS[4], 4)
    borrowing = RunningMean()
    borrowing.merge(first)
    borrowing.add(update({"w": arrays[4]}), WEIGHTS[4], 4)
    from_frame = RunningMean.from_record(frames.decode(frame))
    from_frame.add(update({"w": arrays[4]}), WEIGHTS[4], 4)

    np.testing.assert_array_equal(first.record().groups["model"]["w"], untouched["a"])
    np.testing.assert_array_equal(second.record().groups["model"]["w"], untouched["b"])
    np.testing.assert_array_equal(
        borrowing.record().groups["model"]["w"], from_frame.record().groups["model"]["w"], strict=True
    )
    np.testing.assert_allclose(borrowing.record().groups["model"]["w"], untouched["a"] + WEIGHTS[4] * arrays[4])


def test_updates_may_be_views_that_change_after_the_fold() -> None:
    buffer = np.ones(3, np.float32)
    mean, kept = RunningMean(), UpdateList()
    for client in range(2):
        buffer[:] = client + 1
        mean.add(update({"w": buffer}), 1.0, client)
        kept.add(update({"w": buffer}), 1.0, client)
    buffer[:] = 99
    np.testing.assert_array_equal(mean.value()["model"]["w"], np.full(3, 1.5, np.float32))
    assert [u.groups["model"]["w"][0] for _, u in kept.updates] == [1.0, 2.0]


def test_sums_go_into_the_memory_they_are_given() -> None:
    given: dict[str, dict[str, np.ndarray[Any, Any]]] = {}

    def allocate(record: Record) -> Any:
        given.update(
            {g: {n: np.full(a.shape, np.nan, a.dtype) for n, a in x.items()} for g, x in record.groups.items()}
        )
        return given

    mean = RunningMean(allocate)
    for weight in (1, 3):
        mean.add(update({"h": np.full(2, weight, np.float16), "n": np.array(weight, np.int64)}), weight, 0)
    assert {name: array.dtype.name for name, array in given["model"].items()} == {"h": "float32", "n": "float64"}
    np.testing.assert_array_equal(given["model"]["h"], np.full(2, 10, np.float32))
    assert mean.record().groups["model"]["h"] is given["model"]["h"]


def test_value_writes_into_the_arrays_it_is_given() -> None:
    mean = folded([np.full(3, 2.0, np.float32)], (2,))
    out = {"model": {"w": np.zeros(3, np.float32)}}
    assert mean.value(out)["model"]["w"] is out["model"]["w"]
    np.testing.assert_array_equal(out["model"]["w"], np.full(3, 2.0, np.float32))


@pytest.mark.parametrize("accumulate", [RunningMean, UpdateList])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_names_client_and_array(accumulate: Any, dtype: Any, bad: float) -> None:
    mean = accumulate()
    mean.add(update({"ok": np.ones(2, dtype), "w": np.ones(5, dtype)}), 1.0, 3)
    array = np.ones(5, dtype)
    array[4] = bad
    with pytest.raises(BadUpdate, match=r"client 7: array 'w' of group 'model' is not finite"):
        mean.add(update({"ok": np.ones(2, dtype), "w": array}), 1.0, 7)


def test_large_but_finite_values_are_fine() -> None:
    huge = np.full(4, 1e30, np.float32)  # its squares overflow
    np.testing.assert_array_equal(folded([huge], (1,)).value()["model"]["w"], huge)


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (
            update({"w": np.zeros((3, 2), np.float32), "b": np.zeros(2, np.float32)}),
            r"client 8: array 'w'.*\(3, 2\).*\(2, 3\)",
        ),
        (update({"w": np.zeros((1, 3), np.float32), "b": np.zeros(2, np.float32)}), r"client 8: array 'w'.*\(1, 3\)"),
        (
            update({"w": np.zeros((2, 3), np.float64), "b": np.zeros(2, np.float32)}),
            "client 8: array 'w'.*float64.*float32",
        ),
        (update({"w": np.zeros((2, 3), np.float32)}), r"client 8: group 'model'.*\['b'\]"),
        (
            update({"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32), "c": np.zeros(1)}),
            r"client 8.*\['c'\]",
        ),
        (update({"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}, group="delta"), "client 8: group"),
        (
            Update(
                num_examples=1,
                groups={"model": {"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}, "more": {}},
            ),
            r"client 8: groups \['model', 'more'\].*\['model'\]",
        ),
    ],
)
def test_an_update_unlike_those_before_names_client_and_array(odd: Update, says: str) -> None:
    mean = RunningMean()
    mean.add(update({"w": np.ones((2, 3), np.float32), "b": np.ones(2, np.float32)}), 2.0, 1)
    with pytest.raises(BadUpdate, match=says):
        mean.add(odd, 1.0, 8)


def test_partial_sums_that_do_not_fit_are_refused() -> None:
    one = folded([np.ones(5, np.float32)], (1,))
    with pytest.raises(BadUpdate, match=r"arrays \['w'\]"):
        one.merge(folded([np.ones(1, np.float32)], (1,)))  # would broadcast
    other = RunningMean()
    other.add(update({"v": np.ones(5, np.float32)}), 1.0, 0)
    with pytest.raises(BadUpdate, match=r"arrays \['v', 'w'\]"):
        one.merge(other)


def test_no_weight_no_mean() -> None:
    with pytest.raises(BadUpdate, match="total weight 0"):
        folded([np.ones(2, np.float32)] * 2, (0, 0)).value()
    half = folded([np.full(2, 5.0, np.float32), np.full(2, 7.0, np.float32)], (0, 2))
    np.testing.assert_array_equal(half.value()["model"]["w"], np.full(2, 7.0, np.float32))


def test_an_update_list_comes_back_from_a_frame_with_everything_a_strategy_reads() -> None:
    kept = UpdateList()
    for client in (9, 4):
        kept.add(
            Update(
                num_examples=client * 10,
                groups={"model": {"w": np.full(2, client, ml_dtypes.bfloat16)}, "c": {"w": np.array(client, np.int8)}},
                metrics={"loss": Mean(1.5 * client, client)},
                info={"credit": [client, None]},
            ),
            1.0,
            client,
        )
    again = UpdateList.from_record(frames.decode(bytes(frames.encode(kept.record()))))
    later = UpdateList()
    later.add(Update(num_examples=1, groups={}), 1.0, 2)
    again.merge(later)
    assert [client for client, _ in again.updates] == [9, 4, 2] and again.count == 3
    for (_, mine), (_, theirs) in zip(kept.updates, again.updates, strict=False):
        assert (mine.num_examples, mine.metrics, mine.info) == (theirs.num_examples, theirs.metrics, theirs.info)
        for group in ("model", "c"):
            assert mine.groups[group]["w"].tobytes() == theirs.groups[group]["w"].tobytes()
            assert mine.groups[group]["w"].dtype == theirs.groups[group]["w"].dtype


def test_sum_dtypes_are_as_documented() -> None:
    short = [np.float16, ml_dtypes.bfloat16, np.float32, np.int8, np.uint8, np.bool_]
    long = [np.float64, np.int16, np.int32, np.int64, np.uint32]
    assert {sum_dtype(np.dtype(kind)).name for kind in short} == {"float32"}
    assert {sum_dtype(np.dtype(kind)).name for kind in long} == {"float64"}


def test_scaled_add_takes_views_of_any_stride() -> None:
    total = np.zeros((3, 4), np.float32)
    source = np.arange(12, dtype=np.float32).reshape(4, 3)
    scaled_add(total, source.T, 2.0)
    scaled_add(total, source.T, 1.0)
    np.testing.assert_array_equal(total, 3 * source.T)
