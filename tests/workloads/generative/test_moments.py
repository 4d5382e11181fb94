"""Fréchet and kernel distance from sums: those of the pooled features, by other formulas."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.linalg import sqrtm

from fedloom.core.records import Array
from fedloom.core.seeds import generator
from fedloom.workloads.generative.moments import Moments, frechet, kernel_distance, monomials, pooled


def features(count: int, seed: int, shift: float = 0.0) -> Array:
    rng = generator(seed, "features")
    found: Array = np.tanh(rng.normal(size=(count, 5)) @ rng.normal(size=(5, 5)) * 0.5 + shift)
    return found


def direct_frechet(a: Array, b: Array) -> float:
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(cov_a @ cov_b))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def direct_kernel(a: Array, b: Array) -> float:
    def k(x: Array, y: Array) -> Array:
        found: Array = (x @ y.T / x.shape[1] + 1) ** 3
        return found

    n, m = len(a), len(b)
    within = [(k(x, x).sum() - np.trace(k(x, x))) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return float(within[0] + within[1] - 2 * k(a, b).sum() / (n * m))


def test_distances_of_sums_are_those_of_the_features() -> None:
    a, b = features(60, 1), features(45, 2, 0.4)
    one, other = Moments.of(a), Moments.of(b)
    assert frechet(one, other) == pytest.approx(direct_frechet(a, b), abs=1e-9)
    assert kernel_distance(one, other) == pytest.approx(direct_kernel(a, b), abs=1e-9)
    assert frechet(one, one) == pytest.approx(0.0, abs=1e-9)


def test_clients_sums_give_the_distance_of_the_pooled_sets() -> None:
    a, b = features(60, 1), features(45, 2, 0.4)
    parts = [a[:1], a[1:20], a[20:]]
    crossed = [Moments.from_json(json.loads(json.dumps(Moments.of(part).to_json()))) for part in parts]
    whole = pooled(crossed)
    assert whole.count == 60
    assert frechet(whole, Moments.of(b)) == pytest.approx(frechet(Moments.of(a), Moments.of(b)), abs=1e-10)
    assert kernel_distance(whole, Moments.of(b)) == pytest.approx(direct_kernel(a, b), abs=1e-10)
    local = np.mean([frechet(Moments.of(part), Moments.of(b)) for part in parts[1:]])
    assert abs(local - direct_frechet(a, b)) > 1e-3  # a mean of the clients' own distances is another number


def test_the_kernel_is_the_weighted_product_of_the_monomials() -> None:
    factors, weights = monomials(16)
    assert len(factors) == math.comb(19, 3) == 969
    a, b = features(1, 3)[0], features(1, 4)[0]
    small, shares = monomials(5)
    found = sum(w * np.prod(a[list(f)]) * np.prod(b[list(f)]) for f, w in zip(small, shares, strict=True))
    assert found == pytest.approx((a @ b / 5 + 1) ** 3) and weights.min() > 0


def test_one_image_and_constant_features_have_no_distance_or_zero() -> None:
    one, many = Moments.of(features(1, 1)), Moments.of(features(30, 2))
    assert math.isnan(frechet(one, many)) and math.isnan(kernel_distance(one, many))
    constant = Moments.of(np.full((10, 5), 0.3))
    assert frechet(constant, constant) == pytest.approx(0.0, abs=1e-12)
    assert math.isfinite(frechet(constant, many)) and frechet(constant, many) > 0
    with pytest.raises(ValueError, match="expected 969 sums"):
        Moments.from_json({"dims": 16, "sums": [1.0], "own": 0.0})
