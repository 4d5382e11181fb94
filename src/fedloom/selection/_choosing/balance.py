"""Distance of pooled classes from balance, and from each other."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedloom.selection._choosing.sampling import Floats


def imbalance(pools: Floats) -> Floats:
    """QCID, the quadratic class-imbalance degree: sum_c (z_c / sum z - 1/C)².

    Zhang et al. 2023 (Fed-CBS). Sums are correctly rounded, so the value does not depend on the order of the
    classes and equal pools tie exactly.

    Args:
        pools: non-negative amounts z by class, float64 [n, C].

    Returns:
        float64 [n]; infinite for an empty pool.
    """
    return np.array([_imbalance(pool) for pool in pools])


def divergence(pools: Floats) -> Floats:
    """Kullback-Leibler divergence from the pool's class shares to uniform, sum_c p_c ln(p_c C), in nats.

    Args:
        pools: as for `imbalance`.

    Returns:
        float64 [n], from 0 to ln C; infinite for an empty pool.
    """
    return np.array([_divergence(pool) for pool in pools])


def total_variation(p: npt.ArrayLike, q: npt.ArrayLike) -> Floats:
    """TV(p, q) = 1/2 sum_c |p_c - q_c|, over the last axis; in [0, 1]."""
    apart: Floats = 0.5 * np.abs(np.asarray(p, np.float64) - np.asarray(q, np.float64)).sum(axis=-1)
    return apart


def _imbalance(pool: Floats) -> float:
    total = math.fsum(pool)
    return math.fsum((z / total - 1.0 / len(pool)) ** 2 for z in pool) if total > 0 else math.inf


def _divergence(pool: Floats) -> float:
    total = math.fsum(pool)
    return math.fsum(z / total * math.log(z / total * len(pool)) for z in pool if z > 0) if total > 0 else math.inf
