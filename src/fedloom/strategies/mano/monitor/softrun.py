"""Normalises logits: by softmax, or by the truncated exponential for an unconfident model.

Xie et al. 2024, "MaNo: Exploiting Matrix Norm for Unsupervised Accuracy Estimation under Distribution Shifts" (NeurIPS;
arXiv 2405.18979), section 4. q is a row of logits, K the number of classes.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from fedloom.core.records import Array

Branch = Literal["softmax", "taylor"]


def log_softmax(logits: Array) -> Array:
    """Logarithm of softmax(q), row by row; (n, K) to (n, K), float64."""
    centred = np.asarray(logits, np.float64)
    centred = centred - centred.max(axis=1, keepdims=True)
    shares: Array = centred - np.log(np.exp(centred).sum(axis=1, keepdims=True))
    return shares


def softmax(logits: Array) -> Array:
    """Exponentials over their sum, row by row; (n, K) to (n, K), float64."""
    shares: Array = np.exp(log_softmax(logits))
    return shares


def taylor(logits: Array, *, order: int = 2, row_min: bool = True) -> Array:
    """Return the truncated exponential v(q) = 1 + q + … + q^order / order! over its sum; (n, K) to (n, K), float64.

    Neither monotone in q nor unchanged by a constant added to a row.

    Args:
        logits: q, shape (n, K).
        order: the highest power, at least 1. Odd orders may be negative, so that they need `row_min`.
        row_min: take each row's least v away first. A row of equal values then has none left; it becomes uniform.
    """
    q = np.asarray(logits, np.float64)
    v = sum((q**power / math.factorial(power) for power in range(1, order + 1)), np.ones_like(q))
    if row_min:
        v = v - v.min(axis=1, keepdims=True)
    total = v.sum(axis=1, keepdims=True)
    shares: Array = np.divide(v, total, out=np.full_like(v, 1.0 / v.shape[1]), where=total > 0)
    return shares


def softrun(logits: Array, branch: Branch) -> Array:
    """Return the branch's normalised logits, as in the paper: order 2, the row's minimum subtracted."""
    return softmax(logits) if branch == "softmax" else taylor(logits)
