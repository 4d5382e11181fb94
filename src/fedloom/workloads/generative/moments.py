"""Distances between sets of features from sums that add up over clients, exactly those of the pooled sets.

A client sends, for its n feature vectors f of d entries, n and the sums of all monomials of degree 3 at most, C(d + 3,
3) numbers. The first and second moments among them give the Fréchet distance. All together give the kernel distance:
KID's kernel k(a, b) = (a'b / d + 1)^3 is a weighted product of monomials, k(a, b) = sum_m w_m m(a) m(b), and sum k(a,
a) for the unbiased estimate is one number more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement

import numpy as np

from fedloom.core.records import Array, Info, JsonObject

_DEGREE = 3


@lru_cache(maxsize=4)
def monomials(dims: int) -> tuple[tuple[tuple[int, ...], ...], Array]:
    """Return the factors of each monomial of d entries, and its weight in the kernel.

    (a'b / d + 1)^3 = sum_j binom(3, j) d^-j (a'b)^j, and (a'b)^j has each monomial of degree j as often as its factors
    can be ordered.
    """
    found = [each for degree in range(_DEGREE + 1) for each in combinations_with_replacement(range(dims), degree)]
    weights = []
    for factors in found:
        orders = math.factorial(len(factors))
        for entry in set(factors):
            orders //= math.factorial(factors.count(entry))
        weights.append(math.comb(_DEGREE, len(factors)) * orders / dims ** len(factors))
    return tuple(found), np.array(weights)


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over a set of feature vectors."""

    dims: int
    """Entries d of a vector."""
    sums: Array
    """Of each monomial, (C(d + 3, 3),), float64; the first is the number of vectors."""
    own: float
    """Sum of k(f, f)."""

    @property
    def count(self) -> float:
        """Return the number of vectors, n."""
        return float(self.sums[0])

    @classmethod
    def of(cls, features: Array) -> Moments:
        """Return the sums of features (n, d)."""
        f = np.asarray(features, np.float64)
        dims = f.shape[1]
        factors, _ = monomials(dims)
        sums = np.array([np.prod(f[:, list(each)], axis=1).sum() for each in factors])
        return cls(dims, sums, float((((f * f).sum(1) / dims + 1.0) ** _DEGREE).sum()))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.dims, self.sums + other.sums, self.own + other.own)

    def to_json(self) -> JsonObject:
        """Return the sums as JSON."""
        return {"dims": self.dims, "sums": self.sums.tolist(), "own": self.own}

    @classmethod
    def from_json(cls, info: Info) -> Moments:
        """Return the sums that `to_json` gave.

        Raises:
            ValueError: their number is not that of the monomials.
        """
        sums = np.asarray(info["sums"], np.float64)
        dims = int(info["dims"])
        if sums.shape != (math.comb(dims + _DEGREE, _DEGREE),):
            raise ValueError(f"moments of {dims} features: expected {math.comb(dims + 3, 3)} sums, got {sums.shape}")
        return cls(dims, sums, float(info["own"]))

    @property
    def gaussian(self) -> tuple[Array, Array]:
        """Return the mean (d,) and the unbiased covariance (d, d); NaN for fewer than two vectors."""
        n, factors = self.count, monomials(self.dims)[0]
        if n < 2:
            return np.full(self.dims, np.nan), np.full((self.dims, self.dims), np.nan)
        mean = self.sums[1 : self.dims + 1] / n
        second = np.zeros((self.dims, self.dims))
        for place, each in enumerate(factors):
            if len(each) == 2:
                second[each] = second[each[::-1]] = self.sums[place]
        return mean, (second - n * np.outer(mean, mean)) / (n - 1)


def pooled(parts: Sequence[Moments]) -> Moments:
    """Return the sums over all parts; at least one."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def frechet(a: Moments, b: Moments) -> float:
    """Return |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) >= 0; NaN for fewer than two vectors."""
    (mean_a, cov_a), (mean_b, cov_b) = a.gaussian, b.gaussian
    if not (np.isfinite(cov_a).all() and np.isfinite(cov_b).all()):
        return math.nan
    root = _root(cov_a)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0.0)).sum()
    return max(0.0, float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross))


def kernel_distance(a: Moments, b: Moments) -> float:
    """Return the unbiased squared MMD with KID's kernel, which may be below 0; NaN for fewer than two vectors."""
    if a.count < 2 or b.count < 2:
        return math.nan
    weights = monomials(a.dims)[1]
    within = [(float(weights @ each.sums**2) - each.own) / (each.count * (each.count - 1)) for each in (a, b)]
    return within[0] + within[1] - 2.0 * float(weights @ (a.sums * b.sums)) / (a.count * b.count)


def _root(matrix: Array) -> Array:
    """Return the square root of a symmetric matrix; eigenvalues below 0 count as 0."""
    values, vectors = np.linalg.eigh(matrix)
    root: Array = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root
