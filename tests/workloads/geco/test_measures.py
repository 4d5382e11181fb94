"""From tokens to mass accuracy, and histograms instead of values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedloom.workloads.geco.measures import BINS, histogram, mass_accuracy, median_of, relative, word_importance

WORDS = (None, 0, 1, 1, 2, None)
"""Words of six tokens: the second is cut into two pieces, the ends are special."""


def test_a_words_importance_is_the_sum_of_its_pieces_before_signs_can_cancel() -> None:
    tokens = np.array([5.0, 1.0, -2.0, 2.0, 0.5, 5.0])
    shares = word_importance(tokens, WORDS, 3)
    assert shares == pytest.approx(np.array([1.0, 4.0, 0.5]) / 15.5, abs=1e-12)


def test_mass_accuracy_of_known_explanations() -> None:
    mask = [True, False, True, False, False]
    only = np.array([0.7, 0.0, 0.1, 0.0, 0.0])
    assert mass_accuracy(only, mask) == pytest.approx(1.0, abs=1e-12)
    assert mass_accuracy(np.ones(5), mask) == pytest.approx(2 / 5, abs=1e-12)
    rng = np.random.Generator(np.random.PCG64(1))
    tokens, words = rng.normal(size=7), (None, 0, 1, 2, 3, 4, None)
    found = [mass_accuracy(word_importance(each, words, 5), mask) for each in (tokens, -3.0 * tokens, 1e-6 * tokens)]
    assert found == pytest.approx([found[0]] * 3, abs=1e-12)
    assert found[0] == pytest.approx(np.abs(tokens[[1, 3]]).sum() / np.abs(tokens[1:6]).sum(), abs=1e-12)


def test_what_has_no_importance_or_no_relevant_word_has_no_mass_accuracy() -> None:
    assert math.isnan(mass_accuracy(word_importance(np.zeros(6), WORDS, 3), [True, False, False]))
    assert math.isnan(mass_accuracy(np.ones(3), [False] * 3))
    assert math.isnan(mass_accuracy(word_importance(np.array([1.0, 0, 0, 0, 0, 1.0]), WORDS, 3), [True, False, False]))
    assert histogram(np.array([np.nan, 0.5])) == [0] * 10 + [1] + [0] * 9


def test_histograms_add_up_to_the_histogram_of_all() -> None:
    values = np.random.Generator(np.random.PCG64(2)).random(500)
    parts = np.array([histogram(part) for part in np.split(values, [100, 130, 400])])
    assert parts.sum(axis=0).tolist() == histogram(values) and parts.sum() == 500
    assert histogram(np.array([0.0, 0.05, 0.9999, 1.0])) == [1, 1, *[0] * (BINS - 3), 2]


def test_the_median_of_a_histogram_is_within_a_bin_of_the_values_median() -> None:
    for seed in range(20):
        values = np.random.Generator(np.random.PCG64(seed)).beta(2, 5, size=301)
        assert median_of(histogram(values)) == pytest.approx(float(np.median(values)), abs=1 / BINS)
    assert math.isnan(median_of([0] * BINS))
    assert median_of([4, *[0] * (BINS - 1)]) == pytest.approx(0.5 / BINS)  # evenly spread over the bin


def test_relative_mass_accuracy_is_a_logarithm() -> None:
    assert relative(0.6, 0.3) == pytest.approx(math.log(2.0))
    assert math.isnan(relative(0.0, 0.3)) and math.isnan(relative(0.3, math.nan))
