"""Lengths and distances of models."""

import numpy as np
import pytest

from fedloom.core.distances import distance, length
from fedloom.core.records import Arrays


def test_all_floats_count_together_and_integers_do_not() -> None:
    left: Arrays = {"w": np.array([[3.0, 0.0]], np.float32), "b": np.array(4.0, np.float16), "n": np.array([100])}
    right: Arrays = {"w": np.array([[0.0, 1.0]], np.float32), "b": np.array(4.0, np.float16), "n": np.array([7])}
    assert length(left) == pytest.approx(5.0)
    assert distance(left, right) == pytest.approx(10.0**0.5)
    assert length({}) == 0.0


def test_squares_beyond_the_arrays_dtype_are_summed() -> None:
    assert length({"w": np.full(4, 1e30, np.float32)}) == pytest.approx(2e30, rel=1e-6)
