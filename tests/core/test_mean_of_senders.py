"""The mean of each array over the clients that sent it, with weights of arrays and rows."""

from __future__ import annotations

import numpy as np
import pytest

from fedloom.core.accumulators import MeanOfSenders
from fedloom.core.errors import BadUpdate
from fedloom.core.records import Array, Arrays, Update

DEFAULT: Arrays = {
    "w": np.full((3, 2), 9.0, np.float32),
    "b": np.full(3, 8.0, np.float32),
    "n": np.array(7, np.int64),
}


def update(weights: Arrays | None = None, **arrays: Array) -> Update:
    groups = {"model": arrays} | ({"weights": weights} if weights else {})
    return Update(num_examples=1, groups=groups)


def test_each_array_is_averaged_over_its_senders_and_the_rest_keeps_its_value() -> None:
    total, later = MeanOfSenders(), MeanOfSenders()
    w0, w2 = np.arange(6, dtype=np.float32).reshape(3, 2), np.ones((3, 2), np.float32)
    total.add(update(w=w0), 2.0, 0)
    total.add(update(b=np.array([1, 2, 3], np.float32)), 5.0, 1)
    later.add(update(w=w2, n=np.array(4, np.int64)), 6.0, 2)
    total.merge(MeanOfSenders.from_record(later.record()))
    means = total.value(DEFAULT)
    np.testing.assert_allclose(means["w"], (2 * w0 + 6 * w2) / 8, rtol=1e-6)
    np.testing.assert_allclose(means["b"], [1, 2, 3])
    assert means["n"] == 4 and means["n"].dtype == np.int64 and total.count == 3
    assert [float(total.weights()[name]) for name in ("w", "b", "n")] == [8.0, 5.0, 6.0]


def test_rows_have_weights_of_their_own_and_rows_nobody_sent_keep_their_value() -> None:
    first, second = np.full((3, 2), 1.0, np.float32), np.full((3, 2), 4.0, np.float32)
    total = MeanOfSenders()
    total.add(update({"w": np.array([1.0, 0.0, 0.0])}, w=first), 2.0, 0)
    total.add(update({"w": np.array([0.5, 3.0, 0.0])}, w=second), 2.0, 1)
    means = total.value(DEFAULT)["w"]
    # row 0: (2*1*1 + 2*0.5*4) / (2 + 1); row 1: the second client's alone; row 2: nobody's
    np.testing.assert_allclose(means, [[2.0, 2.0], [4.0, 4.0], [9.0, 9.0]])
    np.testing.assert_array_equal(total.weights()["w"], [3.0, 6.0, 0.0])


def test_a_whole_weight_and_weights_of_rows_mix() -> None:
    total = MeanOfSenders()
    total.add(update(b=np.array([1, 1, 1], np.float32)), 1.0, 0)
    total.add(update({"b": np.array([1.0, 3.0, 0.0])}, b=np.array([5, 5, 5], np.float32)), 1.0, 1)
    np.testing.assert_allclose(total.value(DEFAULT)["b"], [3.0, 4.0, 1.0])  # (1+5)/2, (1+3*5)/4, 1


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (update(w=np.full((3, 2), np.nan, np.float32)), "client 3: array 'w' .* is not finite"),
        (update(w=np.ones((2, 2), np.float32)), "client 3: array 'w' is float32 .2, 2., the clients before sent"),
        (update(w=np.ones((3, 2), np.float64)), "client 3: array 'w' is float64"),
        (update({"w": np.array([1.0, -1.0, 0.0])}, w=np.ones((3, 2), np.float32)), "client 3: weights of array 'w'"),
        (update({"w": np.ones(2)}, w=np.ones((3, 2), np.float32)), "client 3: weights of array 'w'"),
        (update({"b": np.ones(3)}, w=np.ones((3, 2), np.float32)), r"client 3: expected group 'model'.*\['b'\]"),
        (Update(num_examples=1, groups={"more": {"x": np.ones(1)}}), r"client 3: expected group 'model'.*\['more'\]"),
    ],
)
def test_what_cannot_be_averaged_names_the_client(bad: Update, says: str) -> None:
    total = MeanOfSenders()
    total.add(update(w=np.ones((3, 2), np.float32)), 1.0, 0)
    with pytest.raises(BadUpdate, match=says):
        total.add(bad, 1.0, 3)


def test_arrays_the_model_does_not_have_are_named() -> None:
    total = MeanOfSenders()
    total.add(update(x=np.ones(1, np.float32)), 1.0, 0)
    with pytest.raises(BadUpdate, match=r"array 'x' of shape .1,. was sent, which the model does not have"):
        total.value(DEFAULT)
