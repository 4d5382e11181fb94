"""Lines and correlations against numbers one can do by hand."""

import math

import numpy as np
import pytest

from fedloom.strategies.mano.monitor import fits

SCORES = np.array([0.1, 0.2, 0.3, 0.4])


def test_a_straight_line_is_found_and_errs_nowhere() -> None:
    accuracies = 2 * SCORES + 0.05
    line = fits.Line.through(SCORES, accuracies)
    assert (line.slope, line.offset) == pytest.approx((2.0, 0.05))
    assert fits.r_squared(-SCORES, accuracies) == pytest.approx(1.0)
    assert line.error(SCORES, accuracies + 0.1) == pytest.approx(0.1)


def test_correlations_are_numpys() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=50), rng.normal(size=50)
    assert fits.r_squared(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1] ** 2)


def test_constants_have_no_correlation_and_a_flat_line() -> None:
    flat = np.ones(4)
    assert math.isnan(fits.r_squared(flat, SCORES))
    line = fits.Line.through(flat, SCORES)
    assert line.slope == 0.0 and line.offset == pytest.approx(0.25)


def test_ninety_ten_tests_on_sets_it_was_not_fitted_on() -> None:
    scores = np.arange(100.0)
    accuracies = 0.01 * scores
    assert fits.ninety_ten(scores, accuracies) == pytest.approx(0.0, abs=1e-12)
    spoilt = accuracies.copy()
    spoilt[::2] += 0.1
    assert fits.ninety_ten(scores, spoilt) == pytest.approx(0.05, abs=0.005)


def test_a_family_left_out_is_predicted_by_the_line_of_the_others() -> None:
    scores, accuracies = np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.5, 1.5])
    found = fits.left_out(scores, accuracies, ["noise", "noise", "blur", "blur"])
    assert found == pytest.approx({"noise": 0.5, "blur": 0.5})
    assert fits.left_out(scores, accuracies, ["noise"] * 4) == {}
