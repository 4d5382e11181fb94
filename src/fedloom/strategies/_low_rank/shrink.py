"""Reduces a pair of factors to a smaller rank: order the components, keep the first ones.

Legend: A (r, i) and B (o, r) are one layer's factors, ΔW = B A (o, i), r' < r the rank after the cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedloom.core.records import Array, Arrays

Operator = Literal["svd", "slice", "score", "fold"]
_NOTHING = 1e-12
"""‖ΔW‖_F below which there is no basis to find, so A stays as it is."""


@dataclass(frozen=True, slots=True)
class Components:
    """A pair of factors with ordered components."""

    a: Array
    """(r, i), float32."""
    b: Array
    """(o, r), float32."""
    scores: Array
    """Importance of each component, (r,), float64; decreasing, except for `slice`."""

    def first(self, rank: int) -> tuple[Array, Array]:
        """Return the pair cut to the first `rank` components."""
        return np.ascontiguousarray(self.a[:rank]), np.ascontiguousarray(self.b[:, :rank])

    def rest(self, rank: int) -> tuple[Array, Array]:
        """Return the components that `first` omits."""
        return np.ascontiguousarray(self.a[rank:]), np.ascontiguousarray(self.b[:, rank:])


def ordered(a: Array, b: Array, operator: Operator) -> Components:
    """Return the components in an operator's order.

    `svd` (and `fold`) turns them into singular triplets, ΔW = Σ_j σ_j u_j v_jᵀ, with B' = U Σ and A' = Vᵀ: the cut is
    then the best there is in Frobenius norm (Eckart and Young), whatever basis the factors had. The split is not
    symmetric on purpose: with √Σ on both sides a component with σ_j = 0 would have two zero factors and never train
    again. `score` sorts by ‖B_{:,j}‖‖A_{j,:}‖; `slice` leaves them as they are.
    """
    norms = np.linalg.norm(b.astype(np.float64), axis=0) * np.linalg.norm(a.astype(np.float64), axis=1)
    if operator == "slice":
        return Components(a, b, norms)
    if operator == "score":
        order = np.argsort(-norms, kind="stable")
        return Components(a[order], b[:, order], norms[order])
    u, sigma, vt = product_svd(a, b)
    if np.sqrt((sigma**2).sum()) < _NOTHING:
        return Components(a, b, np.zeros(len(a)))
    return Components(vt.astype(a.dtype), (u * sigma).astype(b.dtype), sigma)


def product_svd(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """Compute the singular value decomposition of B A without forming it.

    B = Q_B R_B and Aᵀ = Q_A R_A; the decomposition of the small matrix R_B R_Aᵀ gives U = Q_B u and V = Q_A v. The
    largest entry (by magnitude) of each left vector is made positive, so that signs are reproducible.

    Args:
        a: (r, i).
        b: (o, r).

    Returns:
        U (o, k), σ (k,) falling, Vᵀ (k, i), float64, with k = min(r, o, i); rows and columns orthonormal.
    """
    q_b, r_b = np.linalg.qr(b.astype(np.float64))
    q_a, r_a = np.linalg.qr(a.astype(np.float64).T)
    u, sigma, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return _signed(q_b @ u, sigma, vt @ q_a.T)


def matrix_svd(matrix: Array) -> tuple[Array, Array, Array]:
    """Compute the SVD of a whole matrix (o, i)."""
    return _signed(*np.linalg.svd(matrix.astype(np.float64), full_matrices=False))


def uniform_ranks(components: Mapping[str, Components], rank: int) -> dict[str, int]:
    """Return the same rank for every layer."""
    return {name: min(rank, len(each.a)) for name, each in components.items()}


def ranks_by_importance(components: Mapping[str, Components], rank: int) -> dict[str, int]:
    """Share a budget of rank x layers out by score, over all layers together; at least 1 for each.

    The idea is AdaLoRA's (Zhang et al. 2023), the gradient-free score is ours: with `svd` the remaining components are
    those with the largest singular values in the whole model. Ties go by layer name, then by position.
    """
    budget = rank * len(components)
    queue = sorted(
        ((-float(score), name, index) for name, each in components.items() for index, score in enumerate(each.scores))
    )
    ranks = dict.fromkeys(components, 1)
    left = budget - len(components)
    for _, name, index in queue:
        if index > 0 and left > 0:
            ranks[name] += 1
            left -= 1
    return ranks


def grown(a: Array, b: Array, fresh: Array) -> tuple[Array, Array]:
    """Return the pair with further components of product zero: fresh rows for A, zero columns for B.

    Args:
        a: (r, i).
        b: (o, r).
        fresh: (r', i) with r' > r; its rows from r on are used.
    """
    zeros = np.zeros((len(b), len(fresh) - len(a)), b.dtype)
    return np.concatenate([a, fresh[len(a) :]]), np.concatenate([b, zeros], axis=1)


def resized(factors: Mapping[str, tuple[Array, Array]], fresh: Arrays, rank: int) -> dict[str, tuple[Array, Array]]:
    """Return every pair, those of smaller rank grown to `rank`."""
    return {name: grown(a, b, fresh[name][:rank]) if len(a) < rank else (a, b) for name, (a, b) in factors.items()}


def _signed(u: Array, sigma: Array, vt: Array) -> tuple[Array, Array, Array]:
    largest = u[np.abs(u).argmax(axis=0), np.arange(u.shape[1])]
    signs = np.where(largest < 0, -1.0, 1.0)
    return u * signs, sigma, vt * signs[:, None]
